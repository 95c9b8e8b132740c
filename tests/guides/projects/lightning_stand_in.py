"""What the guide uses of Lightning: a module that keeps its hyperparameters in checkpoints, and a data module."""

import inspect

import torch
from torch import nn


class LightningModule(nn.Module):
    """Like Lightning's, it refuses ``self.trainer`` and what needs it outside of a training."""

    automatic_optimization = True

    def save_hyperparameters(self):
        frame = inspect.currentframe().f_back
        names = inspect.signature(type(self).__init__).parameters
        self.hparams = {name: frame.f_locals[name] for name in names if name != "self"}

    @property
    def trainer(self):
        raise RuntimeError(f"{type(self).__name__} is not attached to a `Trainer`.")

    def log(self, name, value):
        self.trainer.log(name, value)

    @classmethod
    def load_from_checkpoint(cls, path, map_location=None):
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        module = cls(**checkpoint["hyper_parameters"])
        module.load_state_dict(checkpoint["state_dict"])
        return module


class LightningDataModule:
    def prepare_data(self):
        pass

    def setup(self, stage):
        assert stage in ("fit", "validate", "test", "predict")
