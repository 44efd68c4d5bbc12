"""Runs on the emulated processor: are pictures prepared to the same bits, and do engines answer within tolerances?

python3 vectors.py BUNDLE VECTORS, where ``edgekiln pack BUNDLE --vectors VECTORS`` wrote them on the other machine.
Exits 0 where all agree, 1 where something does not.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np

import edgekiln.runtime as ek

bundle, vectors = map(Path, sys.argv[1:])
index = json.loads((vectors / "vectors.json").read_text("utf-8"))
contract = ek.Contract.from_dict(index["contract"])
frames = np.load(vectors / index["frames"]["file"])
results = []


def tell(good, text):
    results.append(good)
    print("ok  " if good else "FAIL", text)


pictures = [row for row in index["rows"] if row["picture"]]
same = sum(
    np.array_equal(ek.prepare(vectors / row["picture"]["file"], contract), frames[row["row"]])
    for row in pictures
)
tell(
    same == len(pictures),
    f"{platform.machine()}: {same} of {len(pictures)} pictures prepared to the same bits",
)
for variant in index["variants"]:
    expected, allowed = (np.load(vectors / variant[key]["file"]) for key in ("logits", "tolerances"))
    asked = list(frames[: len(expected)])
    try:
        classifier = ek.load(bundle, variant=variant["name"], threads=1)
    except ek.MissingExtraError as error:
        print("    ", f"{variant['name']} not tried: {error.message}")
        continue
    except ek.SelfTestError as error:
        tell(False, f"{variant['name']}: {error.message}")
        continue
    except ek.EdgekilnError as error:  # a processor that its library does not support
        print("    ", f"{variant['name']} does not load: {error.message}")
        continue
    with classifier:
        for how, answers in (
            ("one by one", [classifier.predict(frame) for frame in asked]),
            ("as one batch", classifier.predict_batch(asked)),
        ):
            logits = np.array([answer.logits for answer in answers], np.float32)
            flips = int((logits.argmax(1) != expected.argmax(1)).sum())
            apart = np.abs(logits - expected).max(axis=1)
            share = (apart / allowed).max()
            tell(
                share <= 1,
                f"{variant['name']} {how}: {len(asked)} frames, logits {apart.max():.2g} apart at most, "
                f"{100 * share:.1f} % of what is allowed, {flips} other top-1",
            )
sys.exit(not all(results))
