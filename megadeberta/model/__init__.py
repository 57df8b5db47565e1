"""DeBERTa as a list of layer specs, in plain single-device torch."""
