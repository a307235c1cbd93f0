"""What is proposed for the pictures that were found, and the button that takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.i18n import Translate
from lora_trainer.dataset.scan import Dataset
from lora_trainer.training.proposals import Proposal, propose, proposed_steps, with_proposals
from lora_trainer.ui.html.markup import Markup, joined, markup


class ProposalsBox:
    """A table and a button, made where gradio is now; both are hidden while there is nothing to propose.

    Args:
        translate: into the page's language.
    """

    def __init__(self, translate: Translate) -> None:
        self._t = translate
        self.table = gr.HTML(elem_id="lora_train_proposals", visible=False)
        self.take = gr.Button(translate("Take these values"), visible=False, elem_id="lora_train_take")

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`shown` fills."""
        return [self.table, self.take]

    def shown(self, config: TrainConfig, dataset: Dataset, purpose: str, native: int) -> dict[Any, Any]:
        """The proposals that fit; arguments as for :func:`lora_trainer.training.proposals.propose`."""
        proposals = propose(config, dataset, purpose, native)
        is_other = with_proposals(config, proposals) != config
        table = proposals_table(config, proposals, proposed_steps(config, dataset, proposals), purpose, self._t)
        return {self.table: gr.update(value=table, visible=is_other), self.take: gr.update(visible=is_other)}

    def hidden(self) -> dict[Any, Any]:
        """Nothing to propose."""
        return {self.table: gr.update(value="", visible=False), self.take: gr.update(visible=False)}


def proposals_table(
    config: TrainConfig, proposals: Sequence[Proposal], steps: int, purpose: str, translate: Translate
) -> Markup:
    """Each field with its value now, the proposed one, and why."""
    t = translate
    titles = {item.path: item.title for item in options()}
    purposes = {"character": t("a character"), "style": t("a style"), "product": t("a product")}
    heads = joined(markup("<th>{head}</th>", head=head) for head in (t("setting"), t("now"), t("proposed"), t("why")))
    rows = joined(_row(t(titles[p.path]), _value(config, p.path), p, t) for p in proposals)
    title = t("Proposed for {purpose}: {steps:,} steps.", purpose=purposes[purpose], steps=steps)
    return markup(
        '<div class="lt-notice lt-info lt-proposals"><b>{title}</b><table><thead><tr>{heads}</tr>'
        "</thead><tbody>{rows}</tbody></table></div>",
        title=title,
        heads=heads,
        rows=rows,
    )


def _row(title: str, now: Any, proposal: Proposal, t: Translate) -> Markup:
    why = proposal.reason.text(t)
    changed = "" if now == proposal.value else markup(' class="lt-changed"')
    cells = (title, f"{now:g}", f"{proposal.value:g}", why)
    return (
        markup("<tr{changed}>", changed=changed)
        + joined(markup("<td>{text}</td>", text=text) for text in cells)
        + markup("</tr>")
    )


def _value(config: TrainConfig, path: str) -> Any:
    section, _, key = path.rpartition(".")
    return getattr(getattr(config, section), key)
