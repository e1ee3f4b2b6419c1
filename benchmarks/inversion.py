"""Inversion: how much sooner the mean feature distance of the plain one's last step is reached.

The plain reference descends Eq. 8 from N(0, I) for --steps steps in fp32. This project starts
where a trained encoder says, in bf16, compiled. Its steps are counted until the distance, measured
in fp32 over all images, is no larger. The encoder is trained once for all images of a data set:
its seconds are printed beside, with the number of images from which on it pays.
"""

import reference
import torch
from common import data_options, load_biggan, machine, parser, seconds

from itgan import load_dataset
from itgan.configs import EncoderConfig, EvaluationConfig, InversionConfig
from itgan.embedding import train_extractor
from itgan.encoder import train_encoder
from itgan.generators import FrozenGenerator
from itgan.inversion import invert
from itgan.reconstruction import Objective
from itgan.splits import stratified


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    data_options(options)
    options.add_argument("--images", type=int, default=100, help="of the training set")
    options.add_argument("--steps", type=int, default=1000, help="of the plain inversion")
    options.add_argument("--most", type=int, default=200, help="steps from the encoder's guess")
    options.add_argument("--extractor-updates", type=int, default=600)
    options.add_argument("--pair-steps", type=int, default=EncoderConfig().pair_steps)
    options.add_argument("--refine-steps", type=int, default=EncoderConfig().refine_steps)
    args = options.parse_args()
    machine(args.threads)
    train = load_dataset(args.dataset, validation=args.validation).train
    images = train.select(stratified(train.labels, args.images))
    model = load_biggan(args.generator)
    generator = FrozenGenerator.from_biggan(model)
    training = EvaluationConfig(updates=args.extractor_updates, precision="bf16", compile=True)
    extractor = train_extractor(train, training, 0, generator.device)

    steps = EncoderConfig(pair_steps=args.pair_steps, refine_steps=args.refine_steps)
    config = InversionConfig(start="encoder", encoder=steps, precision="bf16", compile=True)
    objective = Objective(generator, extractor, train, config)
    made = []
    learning = seconds(lambda: made.append(train_encoder(objective, 0)))

    def fast(count: int) -> list[float]:
        """Mean feature distances, in fp32, after so many steps; and before each of them."""
        changed = config.model_copy(update={"steps": count})
        bank = invert(generator, images, changed, 0, extractor, encoder=made[0])
        exact = Objective(generator, extractor, images, InversionConfig(precision="fp32"))
        _, feature = exact.losses(bank.latents, torch.arange(len(images)))
        return [*bank.history["feature"], float(feature.mean())]

    plain: list[list[float]] = []
    fast(2)  # compiles
    state = {name: t.detach() for name, t in model.state_dict().items()}
    taken = seconds(
        lambda: plain.append(
            reference.invert(state, images.floats(), images.labels, extractor, args.steps, 0.1)[1]
        )
    )
    goal = plain[0][-1]
    near = [k for k, distance in enumerate(fast(args.most)) if distance <= goal]
    if not near:
        print(f"{args.most} steps do not reach {goal:.5f}; give more with --most")
        return
    enough = near[0] or 1
    while fast(enough)[-1] > goal:  # bf16 may have measured too little
        enough += max(1, enough // 20)
    times = sorted(seconds(lambda: fast(enough)) for _ in range(args.runs))
    ours = times[len(times) // 2]
    pays = learning / ((taken - ours) / len(images))
    print(
        f"\n{len(images)} images of {args.dataset}, {args.generator}\n"
        f"plain      {args.steps} steps, feature distance {goal:.5f}, {taken:.1f} s\n"
        f"encoder    {enough} steps, feature distance {fast(enough)[-1]:.5f}, {ours:.1f} s: "
        f"{taken / ours:.1f} times sooner\n"
        f"its training took {learning:.0f} s once: it pays from {pays:.0f} images on"
    )


if __name__ == "__main__":
    main()
