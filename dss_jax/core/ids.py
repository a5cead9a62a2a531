"""Numbers that all rooms share: token ids with a meaning of their own, and roles of targets."""

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
"""As in T5's vocabularies; `data.vocabulary` refuses others."""

NO_ROLE, LABEL, RATIONALE = 0, 1, 2
"""The task that a target token belongs to; `NO_ROLE` is padding."""

ROLES = ("label", "rationale")
"""Names of roles 1 and 2."""

T5_PUBLIC = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
"""T5's and T5 v1.1's vocabulary: 32,000 pieces, used with 100 extra ids."""

GCS = "https://storage.googleapis.com/"
"""By which public buckets (gs://) need no extra."""
