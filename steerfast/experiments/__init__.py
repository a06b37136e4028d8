"""What is measured with a patched model: dose-response curves and decode speed, so far."""
