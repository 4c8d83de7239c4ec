// The reward of a session as a sum: each term, its weight, and what the term itself is made of (PPP section 3.3).

const ANSWER_COSTS = { low: 0, medium: 0.1, high: 0.5 };
const BONUS = 0.05;
const near = (a, b) => Math.abs(a - b) < 1e-6;

const REASONS = {
  productivity: (record) => {
    const solved = record.session.productivity;
    return solved >= 1 ? "the task is solved" : solved > 0 ? "the task is partly solved" : "the task is not solved";
  },
  proactivity: (record, value) => {
    const { effort, num_questions: questions } = record.session;
    const costs = Object.entries(ANSWER_COSTS).map(([word, cost]) => [word, effort[word] ?? 0, cost]);
    const sum = costs.reduce((total, [, count, cost]) => total - count * cost, 0);
    const onlyLow = questions > 0 && effort.low === questions;
    if (!near(value, sum + (onlyLow ? BONUS : 0))) return "by graded levels of effort, as the released code has it";
    if (!questions) return "nothing was asked";
    if (onlyLow) return `${signed(BONUS)} as every answer was low effort`;
    const parts = costs.filter(([, count]) => count).map(([word, count, cost]) => `${count} ${word} × ${cost ? fixed(-cost, 1) : "0"}`);
    return parts.join(", ");
  },
  personalization: (record, value) => {
    if (value > 0) return `${signed(BONUS)} as the preference was followed throughout`;
    if (value < 0) return `the penalty of ${record.preference}`;
    if (!record.session.num_questions) return "nothing was asked, so nothing shows that it was followed";
    return "no bonus and no penalty";
  },
};

function rewardCard(record, weights) {
  const { reward, ...terms } = record.score;
  const known = weights && Object.keys(weights).length > 0;
  const rows = Object.entries(terms).map(([name, value]) => {
    const weight = known ? weights[name] ?? 1 : null;
    const part = weight === null ? value : weight * value;
    const reason = REASONS[name] ? REASONS[name](record, value) : "";
    return { name, value, weight, part, reason };
  });
  const sum = rows.reduce((total, row) => total + row.part, 0);
  const body = rows.map(({ name, value, weight, part, reason }) =>
    make("tr", {},
      make("th", { scope: "row" }, name, make("span", { class: "reason" }, reason)),
      make("td", {}, fixed(value)),
      make("td", { class: "quiet" }, weight === null ? "" : `× ${Number(weight.toFixed(3))}`),
      make("td", {}, signed(part))));
  const clipped = !near(sum, reward);
  const why = !clipped ? "" : !known && !near(Math.min(1, Math.max(0, sum)), reward)
    ? "weights unknown"
    : `clipped ${reward > sum ? "up" : "down"} from ${fixed(sum)}`;
  const foot = make("tr", { class: "total" },
    make("th", { scope: "row" }, "reward", make("span", { class: "reason" }, why)),
    make("td", {}), make("td", {}), make("td", {}, fixed(reward)));
  const sumRow = clipped && why !== "weights unknown"
    ? make("tr", { class: "sum" }, make("th", { scope: "row" }, "sum"), make("td", {}), make("td", {}), make("td", {}, fixed(sum)))
    : null;
  const head = make("tr", {},
    make("th", { scope: "col" }, "term"), make("th", { scope: "col" }, "value"),
    make("th", { scope: "col" }, known ? "weight" : ""), make("th", { scope: "col" }, "part"));
  return make("section", { class: "card reward", "aria-label": "Reward" },
    make("h4", {}, "Reward"),
    make("div", { class: "scroll" },
      make("table", {}, make("thead", {}, head), make("tbody", {}, body), make("tfoot", {}, sumRow, foot))));
}

// Why the session counts as it does in the metrics (PPP section 3.2).
function verdictReason(record) {
  const { session_effort: effort, num_questions: questions, productivity } = record.session;
  if (!questions && effort === "high" && !record.is_precise && productivity < 1) return "vague prompt, nothing asked, not solved";
  if (!questions) return "nothing was asked";
  return questions === 1 ? "of the one answer" : "highest of all answers";
}
