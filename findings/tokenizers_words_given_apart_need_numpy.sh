#!/bin/sh
# tokenizers 0.23.3. Words given apart (`is_pretokenized=True`, lists of plain str) need NumPy, which the
# package does not depend on and which nothing in the call speaks of: without it Rust panics. What is raised
# is a PanicException, which is no Exception, so `except Exception` around a batch does not hold it; texts
# given whole are encoded as ever. With NumPy installed the same call works.
#
# Seen: whole [1, 2]; apart: PanicException, an Exception: False; with numpy 2.3.5, apart [1, 2].
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/run.py" <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "fish": 1, "chips": 2}, "<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
print("whole", tokenizer.encode("fish chips").ids)
try:
    print("apart", tokenizer.encode(["fish", "chips"], is_pretokenized=True).ids)
except BaseException as error:
    print("apart", type(error).__name__, "an Exception:", isinstance(error, Exception))
PY
"$folder/venv/bin/python" "$folder/run.py" 2> "$folder/panic" | tee "$folder/without"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/with"
grep -qx "apart PanicException an Exception: False" "$folder/without"
grep -qx "apart \[1, 2\]" "$folder/with"
