"""Does each rule do what it promises? Tables with known truth, judged by the real ``verdict``.

``python -m calibration`` writes docs/calibration.md. Nothing here measures a model.
"""
