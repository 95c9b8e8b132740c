import msgspec
from builders import a_recipe, a_trial

from edgeopt.records.recipe import Distill
from edgeopt.select.teacher_gain import undertrained_note

A_TRAINING = Distill(
    epochs=2, optimizer="sgd", learning_rate=0.05, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0, kl_weight=0.9,
    mse_weight=0.0, hard_weight=0.1,
)  # fmt: skip
TRAINED = msgspec.structs.replace(a_recipe(), torch_steps=(A_TRAINING,))


def trained(number, drop, half_width):
    return a_trial(number, recipe=TRAINED, drop=drop, drop_ci95=(drop - half_width, drop + half_width))


def test_the_largest_clear_gain_over_the_trained_network_is_reported():
    note = undertrained_note([a_trial(0), trained(1, -0.04, 0.01), trained(2, -0.05, 0.01), trained(3, 0.0, 0.01)])
    assert note.startswith("The trained network is undertrained: trial 2 scores 0.0500 better than it after 2 epochs")


def test_a_gain_within_noise_without_an_interval_or_without_training_says_nothing():
    untrained = a_trial(
        1, recipe=msgspec.structs.replace(a_recipe(), torch_steps=()), drop=-0.04, drop_ci95=(-0.05, -0.03)
    )
    no_interval = a_trial(2, recipe=TRAINED, drop=-0.04)
    assert undertrained_note([a_trial(0), trained(3, -0.01, 0.009), untrained, no_interval]) is None
