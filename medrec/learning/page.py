"""The page of a model's version: its card in Markdown, and one HTML file that shows how it sees.

Self-contained: no script, no request, every picture inside. Pictures of patients are shown as reports show them: under
no name, burned-in text covered before a network sees what is shown here, or withheld. Explains on this very network,
with its own numbers, how edges become a lesion.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medrec import burned
from medrec.learning import insight, measures
from medrec.learning.ablation import DESIGNED, Trial, designed
from medrec.learning.cases import LabelledCase, sample
from medrec.learning.material import Payload
from medrec.learning.measures import Answer
from medrec.learning.pictures import LabelledPicture
from medrec.learning.tasks import Task
from medrec.models import networks, preprocessing, still, weights
from medrec.outputs import views
from medrec.pictures import Card, PictureCard
from medrec.prediction import ModelCard
from medrec.report import DISCLAIMER

IMAGES = 40  # looked at for best and worst cases: a page, not a second evaluation
SHOWN_CASES = 3
PICTURE_PX, MAP_PX, FILTER_PX = 260, 130, 56
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "figure{display:inline-block;margin:.3rem;vertical-align:top}figcaption{font-size:.8rem;max-width:17rem}"
    "img{image-rendering:pixelated}table{border-collapse:collapse}td,th{padding:.2rem .7rem;border:1px solid #bbb;"
    "text-align:right}th:first-child,td:first-child{text-align:left}"
)


def write(
    task: Task,
    files: Mapping[str, Path],
    images: frozenset[str],
    trials: Sequence[Trial],
    evaluation: Mapping[str, Any] | None,
    out: Path,
) -> tuple[Path, ...]:
    """Write card.md and page.html into `out`; `evaluation` are the facts of what was measured, None without."""
    shown: list[Payload | None] = []
    for payload in task.payloads(images):
        if len(shown) == IMAGES:
            break
        shown.append(_screened(payload))
    predictor = task.predictor(files)
    cases = [(p, measures.answer(predictor, p)) for p in shown if p is not None]
    text = card_markdown(task.card, evaluation)
    (out / "card.md").write_text(text)
    body = [f"<h1>{html.escape(task.card.title)}, {task.card.version}: how it sees</h1>", f"<p>{DISCLAIMER}</p>"]
    if len(cases) < len(shown):
        body.append(f"<p>{burned.WITHHELD}</p>")
    if cases:
        body += _seen(task.card, files, cases)
    body += _answers(task.card, files, trials)
    if cases:
        body += _best_and_worst(cases)
    if task.card.familiarity is not None and task.card.familiarity.risk_coverage:
        figure = risk_figure(task.card.familiarity.risk_coverage, task.card.familiarity.measure)
        body += ["<h2>What is gained by abstaining from strangers</h2>", figure]
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(task.card.title)}</title>"
    (out / "page.html").write_text(f"{page}<style>{STYLE}</style><body>{''.join(body)}</body></html>")
    return out / "card.md", out / "page.html"


def card_markdown(card: Card, evaluation: Mapping[str, Any] | None) -> str:
    """The card for people, as Markdown."""
    lines = [f"# {card.title}, {card.version}", "", card.intended_use, "", f"*{DISCLAIMER}*", "", "## Limits", ""]
    lines += [f"- {limit}" for limit in card.limits]
    lines += ["", "## What looks like it", "", *(f"- {mimic}" for mimic in card.mimics)]
    lines += ["", "## Data and licence", "", card.data, "", f"Weights: {card.licence}.", "", "## Networks", ""]
    lines += [f"- {place}: {n.kind}, weights sha256 `{n.sha256}`" for place, n in card.networks.items()]
    lines += ["", f"Trained on images of {len(card.trained_on)} pixel digests; card `{card.digest}`.", ""]
    lines += _limits(card)
    if evaluation is not None:
        lines += ["## Measured on locked patients", "", "| measure | value | 95% interval |", "|---|---|---|"]
        for name, i in evaluation["measured"].items():
            lines.append(f"| {name} | {_number(i['value'])} | {_number(i['low'])} to {_number(i['high'])} |")
        if evaluation["robustness"]:
            lines += ["", "## Robustness", "", "| images | value | 95% interval |", "|---|---|---|"]
            for name, i in evaluation["robustness"].items():
                lines.append(f"| {name} | {_number(i['value'])} | {_number(i['low'])} to {_number(i['high'])} |")
        if evaluation["subgroups"]:
            lines += ["", "## Subgroups", ""]
            for name, values in evaluation["subgroups"].items():
                told = ", ".join(f"{k} {_number(v)}" for k, v in values.items())
                lines.append(f"- {name}: {told}")
        lines += ["", "## The gate", "", *(f"- {line}" for line in evaluation["lines"])]
    return "\n".join(lines) + "\n"


def _limits(card: Card) -> list[str]:
    """Whom the model knows and how far its volumes may be off, as Markdown; nothing where the card does not say."""
    lines = []
    if (known := card.familiarity) is not None:
        alarms = known.alarms
        told = f"{_number(alarms.share)} [{_number(alarms.low)} to {_number(alarms.high)}]"
        lines += ["## Whom it knows", "", f"Called inconclusive as strangers: {told} of {alarms.patients} {alarms.on}."]
        if known.risk_coverage:
            lines += ["", f"| most familiar share of held-out patients | mean {known.measure} |", "|---|---|"]
            lines += [f"| {share:.0%} | {_number(value)} |" for share, value in known.risk_coverage]
        lines.append("")
    if isinstance(card, ModelCard) and (unsure := card.uncertainty) is not None:
        held = unsure.held
        lines += ["## How far a volume may be off", "", f"{unsure.level:.0%} interval: from {unsure.low:.2f} to "
                  f"{unsure.high:.2f} times what is marked. It held the truth in {_number(held.share)} "
                  f"[{_number(held.low)} to {_number(held.high)}] of {held.patients} {held.on}.", ""]  # fmt: skip
    return lines


def risk_figure(points: Sequence[tuple[float, float]], measure: str) -> str:
    """Mean measure over the share of patients that gets a verdict, the most familiar first, as an SVG."""
    width, height, left, low = 420, 240, 56, 30
    floor = min(v for _, v in points)
    top = max(max(v for _, v in points), floor + 0.01)
    places = [(left + share * (width - left - 16), 16 + (top - v) / (top - floor) * (height - 32 - low))
              for share, v in points]  # fmt: skip
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3'/><text x='{x - 14:.1f}' y='{y - 8:.1f}'>{v:.3f}</text>"
                   for (x, y), (_, v) in zip(places, points, strict=True))  # fmt: skip
    shares = "".join(f"<text x='{x - 12:.1f}' y='{height - 26}'>{share:.0%}</text>"
                     for (x, _), (share, _) in zip(places, points, strict=True))  # fmt: skip
    words = html.escape(f"mean {measure} over the most familiar share of held-out patients")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img' "
        f"aria-label='{words}' font-family='sans-serif' font-size='11'><polyline points='{path}' fill='none' "
        f"stroke='#06c' stroke-width='2'/>{dots}{shares}<text x='{left}' y='{height - 8}'>{words}</text></svg>"
    )


def _seen(card: Card, files: Mapping[str, Path], cases: Sequence[tuple[Payload, Answer]]) -> list[str]:
    """Filters, maps and Grad-CAM on the case with the most to show."""
    payload = max(cases, key=lambda c: float(c[1].truth.sum()))[0]
    place = next(iter(card.networks))
    network, x = _input(card, place, files, payload)
    every = insight.convolutions(network)
    body = [
        "<h2>From edges to textures to a lesion</h2>",
        f"<p>This network ({html.escape(card.networks[place].kind)}) is a chain of {len(every)} convolutions with "
        f"{sum(p.numel() for p in network.parameters()):,} numbers that training has set. A convolution slides a small "
        "stencil over the image and notes at each place how well it fits. The first layer's stencils see a few pixels "
        "only; those below are this network's own. Most respond to an edge in one direction, to a spot or to "
        "brightness itself:</p>",
        *_figures(insight.filters(network), "", FILTER_PX),
        "<p>The next layer looks at the answers of the first, so that it sees where edges meet: corners, stripes, "
        "texture. Each halving of the resolution doubles what one number looks at. Deep layers have few places left, "
        "but each sums up a large part of the image: something bright, with this border, in this neighbourhood. "
        "What the maps of one real case look like at three depths (the most varied maps of each):</p>",
    ]
    for depth, found in insight.maps(network, x).items():
        body += [f"<h3>{depth}: maps of {found[0].shape[1]} x {found[0].shape[0]}</h3>"]
        body += _figures(found, "", MAP_PX)
    body += ["<h2>Where a call comes from (Grad-CAM)</h2>"]
    body += _calls(card, files, cases)
    return body


def _calls(card: Card, files: Mapping[str, Path], cases: Sequence[tuple[Payload, Answer]]) -> list[str]:
    place = "classification" if card.classification is not None else next(iter(card.networks))
    ranked = sorted(cases, key=lambda c: _rightness(c[1], place))
    body, told = [], {"the best call": ranked[-1], "the worst call": ranked[0]}
    for words, (payload, answer) in told.items():
        network, x = _input(card, place, files, payload)
        cam = insight.grad_cam(network, x, lambda y: y.sum() if y.ndim == 2 else y.clamp(min=0).sum())
        image = _middle(x)
        right = _rightness(answer, place) >= 0.5
        caption = f"{words}: {'right' if right else 'wrong'} ({_rightness(answer, place):.2f})"
        body += _figures([image, image / (np.ptp(image) or 1) + cam], caption, PICTURE_PX)
    return [*body, "<p>Left what the network was shown, right the same with the places that pushed the call up made "
            "bright. A call for a wrong reason, such as a mark of the operator, shows here.</p>"]  # fmt: skip


def _rightness(answer: Answer, place: str) -> float:
    if place == "classification" and answer.chance is not None:
        return answer.chance if answer.positive else 1 - answer.chance
    return measures.of_image(answer, distances=False).get("dice", 0.0)


def _answers(card: Card, files: Mapping[str, Path], trials: Sequence[Trial]) -> list[str]:
    """What an activation does, and whether it is all trial and error; with what the short runs measured."""
    place = next(iter(card.networks))
    network, _ = _input(card, place, files, None)
    own = designed(network)
    body = [
        "<h2>What an activation does</h2>",
        f"<p>Between two convolutions stands a simple curve, here {html.escape(own)}. A convolution only adds and "
        "multiplies, and two of them in a row are again one convolution: without a curve between them a network of any "
        "depth is one stencil. The curve lets a number pass or stops it, so that a later layer can say <em>this edge "
        "and not that one</em>.</p>",
    ]
    if not trials:
        return [*body, "<p>No patient watched this training, so that nothing was measured here.</p>"]
    rows = "".join(
        f"<tr><td>{t.activation if t.activation != DESIGNED else f'{own} (as designed)'}</td>"
        f"<td>{_number(t.curve[0][1])}</td><td>{_number(t.curve[-1][1])}</td><td>{t.curve[-1][0]}</td></tr>"
        for t in trials
        if t.curve
    )
    ends = {t.activation: t.curve[-1][1] for t in trials if t.curve}
    best = min(ends, key=lambda name: ends[name])
    return [
        *body,
        "<p>Measured: the same network, data, seed and number of steps, with another curve each; the loss of patients "
        "who were not learnt from (less is better), at the first look and at the last:</p>",
        f"<table><tr><th>activation</th><th>first look</th><th>last look</th><th>steps</th></tr>{rows}</table>",
        f"<p>The best of these short runs was {html.escape(best)}, at {ends[best]:.4f}; without any activation it was "
        f"{ends.get('none at all', float('nan')):.4f}. Short runs say what learns fast, not what ends best.</p>",
        "<h2>Is it all trial and error?</h2>",
        f"<p>The {sum(p.numel() for p in network.parameters()):,} numbers are not tried out: for each batch of images "
        "the derivative of the loss tells of every number whether it should be larger or smaller, and each moves a "
        f"little in this direction ({card.training.batch} images a step). What is tried out are the few choices in the "
        "card: depth, width, learning rate, activation. They were compared on patients who are not locked; the locked "
        "ones are asked once for a version, and the card says beforehand what counts as better.</p>",
    ]


def _best_and_worst(cases: Sequence[tuple[Payload, Answer]]) -> list[str]:
    scored = [(measures.of_image(a, distances=False).get("dice"), p, a) for p, a in cases if a.outlined]
    ranked = sorted((s for s in scored if s[0] is not None), key=lambda s: float(s[0] or 0))
    if not ranked:
        return []
    body = ["<h2>Best and worst cases</h2><p>White: outlined by a person. Black: by the network.</p>"]
    worst, best = ranked[:SHOWN_CASES], ranked[SHOWN_CASES:][-SHOWN_CASES:]
    for words, chosen in (("worst", worst), ("best", best[::-1])):
        for value, payload, answer in chosen:
            body += _figures([_contoured(payload, answer)], f"{words}: Dice {float(value or 0):.3f}", PICTURE_PX)
    return body


def _contoured(payload: Payload, answer: Answer) -> npt.NDArray[np.float32]:
    if isinstance(payload, LabelledPicture):
        image, truth, mask = payload.pixels, answer.truth, answer.mask
    else:
        k = int((answer.truth | answer.mask).sum((0, 1)).argmax())
        grid = next(v for v in payload.inputs.values() if v.voxels.shape == answer.truth.shape)
        image, truth, mask = grid.voxels[:, :, k].T, answer.truth[:, :, k].T, answer.mask[:, :, k].T
    low, high = np.percentile(image, (1, 99.5))
    shown = np.clip((image - low) / (float(high - low) or 1), 0, 1) * 0.8 + 0.1
    shown[_edge(truth)] = 1
    shown[_edge(mask)] = 0
    return np.asarray(shown, np.float32)


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _screened(payload: Payload) -> Payload | None:
    """What may be shown: a picture without burned-in text; None where that cannot be checked."""
    if isinstance(payload, LabelledCase):
        return payload
    (shown,), said = burned.screened_pictures([payload.pixels])
    return None if said == (burned.WITHHELD,) else replace(payload, pixels=shown)


def _input(
    card: Card, place: str, files: Mapping[str, Path], payload: Payload | None
) -> tuple[nn.Module, torch.Tensor]:
    """A network of the card on CPU, and what it sees of a case: of a volume the slice with the most marked."""
    part = card.networks[place]
    if isinstance(card, PictureCard):
        channels = still.CHANNELS_TO_CLASSIFY if place == "classification" else still.CHANNELS_TO_OUTLINE
    else:
        channels = preprocessing.channels(card)
    network = networks.build(part.kind, part.settings, channels)
    weights.fill(network, weights.read(files[part.weights], part.sha256), part.weights)
    network.eval()
    if isinstance(payload, LabelledPicture):
        assert isinstance(card, PictureCard)
        image, size = still.seen(payload.pixels), card.preprocessing.size_px
        if place == "classification":
            return network, still.looked_at(image, payload.mask, card.preprocessing)
        return network, still.whole(image, size)
    if isinstance(payload, LabelledCase):
        assert isinstance(card, ModelCard)
        seen = sample(payload, card)
        if card.preprocessing.depth is not None:
            return network, preprocessing.whole(seen.images.float(), card.preprocessing.depth)
        k = int(seen.target.float().sum((1, 2)).argmax())
        stack = preprocessing.with_neighbours(seen.images.float(), card.preprocessing.neighbours)
        return network, stack[k : k + 1]
    return network, torch.zeros(1, channels, 32, 32)


def _middle(x: torch.Tensor) -> npt.NDArray[np.float32]:
    """The channel in the middle of the grid's own input, as a picture."""
    flat = x[0, 0] if x.ndim == 4 else x[0, 0, x.shape[2] // 2]
    return flat.numpy().astype(np.float32)


def _figures(pictures: Iterable[npt.NDArray[np.float32]], caption: str, longest_px: int) -> list[str]:
    found = []
    for number, picture in enumerate(pictures):
        low, high = float(picture.min()), float(picture.max())
        levels = np.round((picture - low) / ((high - low) or 1) * 255).astype(np.uint8)
        words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption and number == 0 else ""
        side = f"width:{longest_px * levels.shape[1] // max(levels.shape)}px"
        found.append(f"<figure><img alt='' style='{side}' src='{views.png(levels, longest_px)}'>{words}</figure>")
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
