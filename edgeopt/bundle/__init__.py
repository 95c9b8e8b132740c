"""The folder that an app takes: model, proof, golden inputs and outputs, report; written completely or not at all."""
