// How far lossy and blended answers were from full prefill, as clients reported of those that they checked.

import { byId, say, show } from "./dom.js";
import { count, many, percent } from "./format.js";
import { Table } from "./table.js";

function nats(value) {
  return `${value.toFixed(4)} nats`;
}

export class Quality {
  constructor() {
    const tone = (row) => row.alert ? "warn" : null;
    this.table = new Table({
      label: "Checked answers", key: (row) => row.which, empty: "",
      columns: [
        { title: "Answers", text: (row) => row.which },
        { title: "KL", hint: "Divergence of their first tokens, in the mean", text: (row) => nats(row.kl), number: true, tone },
        { title: "Same first token", text: (row) => percent(row.agreement), number: true, tone },
      ],
    });
    byId("quality").replaceChildren(this.table.element);
  }

  update(state) {
    show(byId("quality-panel"), state.quality !== null);
    if (state.quality === null) return;
    const { checked, agreed, kl, recent_kl, recent_agreement, alert } = state.quality;
    this.table.update([
      { which: "the latest", kl: recent_kl, agreement: recent_agreement, alert },
      { which: `all ${count(checked)}`, kl, agreement: agreed / checked, alert: false },
    ]);
    say(byId("quality-sum"), many(checked, "answer") + (alert ? ": the latest miss the quality asked for" : ""));
  }
}
