import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan.randomness import derive, derive_seed

ELEMENT = st.one_of(st.integers(), st.text(max_size=5))


@given(st.integers(0, 2**63 - 1), st.lists(ELEMENT, max_size=4))
def test_seeds_are_63_bits_and_a_function_of_the_path(seed, path):
    derived = derive_seed(seed, *path)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *path)
    assert derived != derive_seed(seed + 1, *path)
    assert derived != derive_seed(seed, *path, "more")


def test_the_type_and_the_place_of_an_element_count():
    paths = [(), ("a", "b"), ("b", "a"), ("ab",), ("a", ""), ("1",), (1,), (1, 1), (11,)]
    assert len({derive_seed(0, *path) for path in paths}) == len(paths)


def test_the_hash_is_fixed():
    # Banks, checkpoints and cells on people's disks were made with these.
    assert derive_seed(0) == 4761921975702974394
    assert derive_seed(7, "latent", 3) == 6818107719791647079


def test_streams_are_apart_from_the_global_one():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (torch.randn(4, generator=derive(0, "x", i)) for i in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
