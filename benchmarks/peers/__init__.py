"""What one would use instead of steerfast. ``peer`` says what a peer is asked and offers, ``registry`` lists all, adapters are
in ``baselines`` (no library), ``hooked``, ``traced`` and ``apart``; ``agreement`` compares them with the float64 model of
``exact`` (case by case, on a ``rig``); ``stepping`` and ``counting`` tell what a step costs; ``environments`` makes the environments they run in.
"""
