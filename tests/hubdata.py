"""Small data sets in exactly the schema and layout of the hub, written by ``datasets`` itself."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

TEXT = Value("string")


def png(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A noise picture as PNG bytes; another seed, another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Pillow.fromarray(pixels))


def encoded(image: Pillow.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cell(data: bytes | None) -> dict | None:
    return None if data is None else {"bytes": data, "path": None}


def write(rows: list[dict], features: Features, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(file))
    return file


CHARTQA = Features(
    image=Image(),
    query=TEXT,
    label=Sequence(TEXT),
    human_or_machine=ClassLabel(names=["human", "machine"]),
)


def chartqa(folder: Path, n: int = 8) -> Path:
    """HuggingFaceM4/ChartQA: two questions on each chart, human ones first."""
    rows = [
        {
            "image": cell(png(i // 2)),
            "query": f"how many of {i} ?",
            "label": [str(10 * i)],
            "human_or_machine": int(i >= n // 2),
        }
        for i in range(n)
    ]
    write(rows, CHARTQA, folder / "data" / "test-00000-of-00001.parquet")
    write(rows[:2], CHARTQA, folder / "data" / "train-00000-of-00001.parquet")
    return folder


CHARTQA_LMMS = Features(type=TEXT, question=TEXT, answer=TEXT, image=Image())


def chartqa_lmms(folder: Path, n: int = 4) -> Path:
    """lmms-lab/ChartQA: the other schema."""
    rows = [
        {
            "type": "human_test" if i % 2 else "augmented_test",
            "question": f"how many of {i} ?",
            "answer": f"{i}%",
            "image": cell(png(i)),
        }
        for i in range(n)
    ]
    write(rows, CHARTQA_LMMS, folder / "data" / "test-00000-of-00001.parquet")
    return folder


BLINK = Features(
    idx=TEXT,
    question=TEXT,
    sub_task=TEXT,
    image_1=Image(),
    image_2=Image(),
    image_3=Image(),
    image_4=Image(),
    choices=Sequence(TEXT),
    answer=TEXT,
    prompt=TEXT,
    explanation=TEXT,
)


def blink_row(sub_task: str, i: int, n_images: int, answer: str = "(B)") -> dict:
    images = [cell(png(100 * n_images + 10 * i + k)) for k in range(n_images)]
    images += [None] * (4 - n_images)
    return {
        "idx": f"val_{sub_task}_{i}",
        "question": "which one ?",
        "sub_task": sub_task,
        **{f"image_{k}": image for k, image in enumerate(images, 1)},
        "choices": ["red", "blue"],
        "answer": answer,
        "prompt": "which one ?\nSelect from the following choices.\n(A) red\n(B) blue",
        "explanation": "",
    }


def blink(folder: Path) -> Path:
    """BLINK-Benchmark/BLINK: a configuration per sub-task, answers hidden in the test split."""
    card = ["---", "configs:"]
    for sub_task, n_images in (("Counting", 1), ("Jigsaw", 3)):
        card += [f"- config_name: {sub_task}", "  data_files:"]
        for split, answer in (("val", "(B)"), ("test", "hidden")):
            file = folder / sub_task / f"{split}-00000-of-00001.parquet"
            write([blink_row(sub_task, i, n_images, answer) for i in range(3)], BLINK, file)
            card += [f"  - split: {split}", f"    path: {sub_task}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


FLICKR8K = Features(image=Image(), **{f"caption_{k}": TEXT for k in range(5)})


def flickr8k(folder: Path) -> Path:
    """jxie/flickr8k: five captions by people."""
    captions = ["a dog runs", "the dog is running", "a brown dog", "one dog outside", "dog ."]
    rows = [
        {"image": cell(png(i)), **{f"caption_{k}": f"{c} {i}" for k, c in enumerate(captions)}}
        for i in range(4)
    ]
    write(rows, FLICKR8K, folder / "data" / "test-00000-of-00001-abc.parquet")
    return folder


SCIENCEQA = Features(
    image=Image(),
    question=TEXT,
    choices=Sequence(TEXT),
    answer=Value("int8"),
    hint=TEXT,
    subject=TEXT,
)


def scienceqa(folder: Path) -> Path:
    """lmms-lab-encoder/ScienceQA: integer answers; in FULL, rows without picture."""
    rows = [
        {
            "image": cell(png(i) if i % 2 else None),
            "question": f"what is {i} ?",
            "choices": ["one", "two", "three"][: 2 + i % 2],
            "answer": i % 3 if i % 2 else 0,
            "hint": "look ." if i == 1 else "",
            "subject": "physics",
        }
        for i in range(6)
    ]
    write(rows, SCIENCEQA, folder / "ScienceQA-FULL" / "test-00000-of-00001.parquet")
    with_picture = [row for row in rows if row["image"]]
    write(with_picture, SCIENCEQA, folder / "ScienceQA-IMG" / "test-00000-of-00001.parquet")
    return folder
