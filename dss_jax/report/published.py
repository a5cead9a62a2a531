"""The accuracies that the paper prints, to be drawn beside a user's own.

Hsieh et al. 2023 (arXiv 2305.02301), tables for T5-Base (220M) on all data; the teacher's line is
measured on the authors' released completions. No other number is printed there.
"""

LABEL = "published (Hsieh et al. 2023, T5-Base 220M)"

ACCURACY = {
    "esnli": {"standard": 88.38, "single_task": 88.88, "dss": 89.51},
    "anli1": {"standard": 43.58, "single_task": 43.50, "dss": 49.58},
    "cqa": {"standard": 62.19, "single_task": 61.37, "dss": 63.29},
    "svamp": {"standard": 62.63, "single_task": 63.00, "dss": 65.50},
}
"""Task -> method -> test accuracy, per cent; "dss" with the rationales of PaLM 540B."""

TEACHER = {"esnli": 72.99, "anli1": 65.60, "cqa": 77.23, "svamp": 74.00}
"""Task -> test accuracy of PaLM 540B's few-shot chain-of-thought labels, per cent."""
