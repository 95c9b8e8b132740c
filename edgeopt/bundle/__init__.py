"""The folder an app takes: the model, the proof, golden inputs and outputs, the report; written whole or not at all."""
