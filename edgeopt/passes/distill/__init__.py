"""Knowledge distillation: the trained model teaches a smaller network."""
