"""A model card of an adapter folder: what it is, how it was trained and tested, what it is not for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from fe_adapter.data.layouts import LAYOUTS
from fe_adapter.files import read_json
from fe_adapter.libraries import require
from fe_adapter.sharing.content import WEIGHTS_FILE, read_config
from fe_adapter.sharing.schema import AdapterFolder, ClassifierPart

CARD_FILE = "README.md"
METRICS_FILE = Path("eval", "metrics.json")  # of a run, as `fe-adapter eval` leaves it
LIMITS = """- It was made for videos like those it was trained on. Other faces, light, cameras and cultures may be read
  worse; test it on yours before you rely on it, for every group of people apart.
- A face that shows an emotion is no proof of one. What a model says of a face is what annotators would have said.
- Videos of faces are biometric data: in many places consent or another legal ground is needed to process them, and
  some uses, such as inferring emotions of employees or pupils, are forbidden (EU AI Act, article 5)."""
SOURCES = "The method is that of FE-Adapter (arXiv 2408.02421); static ones are those of ST-Adapter (arXiv 2206.13559)."


def model_card(folder: Path, title: str, license: str | None = None) -> str:
    """The card, as Markdown with the hub's fields in front.

    Figures are those of the last ``fe-adapter eval`` of this very model, where there was one.

    Args:
        folder: written by `save_adapter`.
        title: of the card.
        license: of the adapter, as the hub calls it; None names none.

    Raises:
        InputError: ``folder`` is no adapter folder, or huggingface_hub is not installed.
    """
    content = read_config(folder)
    require("huggingface_hub", "a model card", "hub")
    from huggingface_hub import EvalResult, ModelCardData

    metrics = _metrics(folder)
    data = _data(content.classifier)
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type="video",
            dataset_name=data,
            metric_type=kind,
            metric_name=name,
            metric_value=round(metrics[kind], 4),
        )
        for kind, name in (("uar", "UAR"), ("war", "WAR"))
        if kind in metrics
    ]
    fields = ModelCardData(
        base_model=_base_model(content),
        library_name="fe-adapter",
        license=license,
        pipeline_tag="video-classification" if content.classifier else None,
        tags=["fe-adapter", "video-classification", "adapter"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    parts = [
        f"# {title}",
        _what(content),
        f"## Use\n\n{_use(content, title)}",
        f"## Training data\n\n{data}.\n{_clips(content.classifier)}".rstrip(),
        f"## Results\n\n{_results(metrics, content.classifier)}",
        f"## Parameters\n\n{_parameters(folder, content)}",
        f"## Backbone and licences\n\n{_backbone(content, license)}",
        f"## Limits\n\n{LIMITS}",
        f"Written by fe-adapter.\n{SOURCES}",
    ]
    return f"---\n{fields.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metrics(folder: Path) -> dict[str, Any]:
    """Of the last test of this very model, not changed since; empty where there was none."""
    weights = folder / WEIGHTS_FILE
    for run in (folder, folder.parent):
        file = run / METRICS_FILE
        if file.exists() and file.stat().st_mtime >= weights.stat().st_mtime:
            metrics = read_json(file)
            if isinstance(metrics, dict) and metrics.get("model") == folder.resolve().name:
                return metrics
    return {}


def _what(content: AdapterFolder) -> str:
    classifier, config = content.classifier, content.adapter
    made = "Adapters" if classifier is None else {
        "adapter": "Temporal adapters and a linear head",
        "head": "A head",
        "full": "All weights and a head, fine-tuned",
    }[classifier.tune]  # fmt: skip
    name = "an image transformer" if content.backbone is None else f"`{content.backbone.name}`"
    lines = [f"{made} for {name}, which make it a classifier of video clips." if classifier else f"{made} for {name}."]
    if classifier is not None:
        lines.append(f"Classes: {', '.join(classifier.class_names)}.")
        lines += [f"Note: {classifier.note}."] if classifier.note else []
    if config is not None:
        dilation = "predicted for every token" if config.dilation == "dynamic" else str(config.dilation)
        causal = "; causal, so that streams are answered frame by frame" if config.causal else ""
        width = content.embed_dim // 2 if config.bottleneck is None and content.embed_dim else config.bottleneck
        lines.append(f"Bottleneck {width}, kernel {config.kernel_size}, dilation {dilation}{causal}.")
    return "\n".join(lines)


def _use(content: AdapterFolder, title: str) -> str:
    if content.classifier is None:
        return f'```python\nfrom fe_adapter import load_adapter\n\nload_adapter(vit, "hub:{title}")\n```'
    return (
        f"```bash\nfe-adapter predict hub:{title} video.mp4\n```\n\n"
        f'```python\nfrom fe_adapter import load_classifier, predict_video\n\nmodel = load_classifier("hub:{title}")\n'
        'print(predict_video(model, "video.mp4").label)\n```'
    )


def _data(classifier: ClassifierPart | None) -> str:
    sampling = None if classifier is None else classifier.clip_sampling
    if sampling is None or sampling.layout is None:
        return "Videos of the author's own, which this card does not describe"
    fold = "" if sampling.fold is None else f", fold {sampling.fold}"
    title = LAYOUTS[sampling.layout].title if sampling.layout in LAYOUTS else sampling.layout
    return f"{title}{fold}"


def _clips(classifier: ClassifierPart | None) -> str:
    if classifier is None:
        return ""
    height, width = classifier.preprocessing.size
    words = [f"Clips of {classifier.num_frames} frames of {height}×{width} pixels"]
    if classifier.clip_sampling is not None:
        words.append(f"{classifier.clip_sampling.sampling} sampling")
    if classifier.clip_seconds is not None:
        words.append(f"about {classifier.clip_seconds:.1f} s long")
    if classifier.faces is not None:
        words.append(f"cut to faces ({classifier.faces.which}, by {Path(classifier.faces.detector).name})")
    else:
        words.append("whole frames")
    return ", ".join(words) + "."


def _results(metrics: dict[str, Any], classifier: ClassifierPart | None) -> str:
    if "uar" not in metrics:
        return "Not tested: there was no `fe-adapter eval` before this card was written."
    rows = ["| | % | 95 % interval |", "|---|--:|---|"]
    for key, name in (("uar", "UAR, the mean recall of the classes"), ("war", "WAR, the accuracy")):
        low, high = metrics.get(f"interval_{key}", (None, None))
        interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append(f"| {name} | {100 * metrics[key]:.1f} | {interval} |")
    rows += [f"| recall of {name} | {100 * value:.1f} | |" for name, value in metrics.get("recall", {}).items()]
    about = [f"{metrics.get('num_clips', '?')} clips; intervals are a bootstrap's over clips."]
    if metrics.get("views"):
        about.append(f"Views: {metrics['views']} (frames × clips × crops).")
    if metrics.get("select_on_test"):
        about.append("**The epoch was chosen on this very test split**, so that this is no test.")
    if classifier is not None and classifier.temperature != 1:
        about.append(
            f"Probabilities are divided by a temperature of {classifier.temperature:.2f}, fitted in validation."
        )
    return "\n".join(rows) + "\n\n" + " ".join(about)


def _parameters(folder: Path, content: AdapterFolder) -> str:
    counts: dict[str, int] = {}
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            part = "adapters" if ".fe_adapter" in name else "head" if not name.startswith("vit.") else "backbone"
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            counts[part] = counts.get(part, 0) + size
    total = f"{sum(counts.values()):,} in `{WEIGHTS_FILE}`: "
    return total + ", ".join(f"{count:,} of the {part}" for part, count in counts.items()) + "."


def _base_model(content: AdapterFolder) -> str | None:
    """The backbone as the hub calls it, where its name says so."""
    if content.backbone is None or content.backbone.weights != "pretrained":
        return None
    library, _, name = content.backbone.name.partition(":")
    return {"hf": name, "timm": f"timm/{name}"}.get(library)


def _backbone(content: AdapterFolder, license: str | None) -> str:
    lines = [f"- This adapter: {license or 'the author names no licence'}."]
    if content.backbone is None:
        return "\n".join([*lines, "- Backbone: not named; whoever loads this gives it."])
    source = {"pretrained": "the library's pretrained weights", "none": "random weights, which are in the file"}
    weights = source.get(content.backbone.weights, f"weights of one's own, `{Path(content.backbone.weights).name}`")
    lines.append(f"- Backbone: `{content.backbone.name}`, {weights}; its own licence holds beside this one.")
    return "\n".join(lines)
