"""Real TFDS folders for the tests, written by TFDS's own builder: array_record files, no TensorFlow."""

import io

import numpy as np


def write_tfds(data_dir, name, version, features, parts, file_format="array_record"):
    """Writes ``data_dir/name[/config]/version``; ``parts`` is {part: rows}."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    dataset, _, config = name.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {part: enumerate(rows) for part, rows in parts.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = dataset
    options = {"config": config} if config else {}
    Builder(data_dir=str(data_dir), file_format=file_format, **options).download_and_prepare()


def text_folder(data_dir, name, version, fields, class_names, parts, **more):
    """Writes texts: ``parts`` is {part: [(label, text, ...)]}."""
    import tensorflow_datasets as tfds

    features = {
        "label": tfds.features.ClassLabel(names=class_names),
        **{field: tfds.features.Text() for field in fields},
    }
    rows = {
        part: [{"label": label, **dict(zip(fields, words, strict=True))} for label, *words in found]
        for part, found in parts.items()
    }
    write_tfds(data_dir, name, version, features, rows, **more)


def glue_folder(data_dir, task, parts):
    """Writes a GLUE task with TFDS's own fields: idx too."""
    import tensorflow_datasets as tfds

    from ffalora_jax.data.glue import TASKS

    about = TASKS[task]
    features = {
        "idx": np.int32,
        "label": tfds.features.ClassLabel(names=list(about.class_names)),
        **{field: tfds.features.Text() for field in about.fields},
    }
    rows = {
        part: [
            {"idx": index, "label": label, **dict(zip(about.fields, words, strict=True))}
            for index, (label, *words) in enumerate(found)
        ]
        for part, found in parts.items()
    }
    write_tfds(data_dir, f"glue/{task}", "2.0.0", features, rows)


def image_folder(data_dir, name, version, class_names, parts, shape=(32, 32, 3), coarse=None):
    """Writes images: ``parts`` is {part: [(label, pixels)]}."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=class_names),
    }
    if coarse:
        features["coarse_label"] = tfds.features.ClassLabel(names=coarse)
    rows = {
        part: [
            {
                "image": io.BytesIO(encoded(pixels)),
                "label": label,
                **({"coarse_label": label % len(coarse)} if coarse else {}),
            }
            for label, pixels in found
        ]
        for part, found in parts.items()
    }
    write_tfds(data_dir, name, version, features, rows)


def encoded(pixels, form="PNG", **options):
    """Returns the bytes of an image file."""
    from PIL import Image

    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **options)
    return file.getvalue()


def pixels_of(seed, height=32, width=32, channels=3):
    """Returns pixels that differ from seed to seed."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
