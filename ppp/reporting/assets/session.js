// One session as a conversation: the task and its user, turn after turn, how it ended and what it earned.

const PARTS_OF_TIME = ["setup", "generate", "tool", "user", "score"];

function badge(kind, text, title) {
  return make("span", { class: `badge ${kind}`, title }, text);
}

const effortBadge = (word) => make("span", { class: `effort ${word}` }, `${word} effort`);

function sessionHead(record, place) {
  const run = label("run", place);
  const facts = [run, record.environment, record.is_precise ? "precise prompt" : "vague prompt"];
  if (record.slice) facts.push(String(record.slice).replaceAll("_", " "));
  if (record.step) facts.push(`step ${record.step}`);
  if (record.mode) facts.push(record.mode);
  const tabs = data.index.sampled.includes(place) ? viewTabs() : null;
  return make("header", { class: "session-head" },
    make("div", { class: "session-title" },
      make("button", { type: "button", class: "back", onclick: closeSession, "aria-label": "Back to the list" }, "←"),
      make("h3", { dir: "ltr" }, longText(record.task_id, { lines: 2, chars: 200 })),
      make("div", { class: "steps" },
        make("button", { type: "button", onclick: () => moveSelection(-1), "aria-label": "Previous session", title: "k" }, "↑"),
        make("button", { type: "button", onclick: () => moveSelection(1), "aria-label": "Next session", title: "j" }, "↓"))),
    make("p", { class: "session-facts" }, make("bdi", {}, facts.join(" · "))),
    tabs);
}

function viewTabs() {
  const tab = (view, text) =>
    make("button", { type: "button", "aria-pressed": String(state.view === view), onclick: () => chooseView(view) }, text);
  return make("div", { class: "tabs", role: "group", "aria-label": "View" }, tab("", "Conversation"), tab("tokens", "Tokens"));
}

function verdicts(record, place) {
  const fact = (name, value, note, kind) =>
    make("div", { class: "fact" }, make("dt", {}, name), make("dd", {}, make("span", { class: kind ?? "" }, value), note ? make("small", {}, note) : null));
  const { session, score, timings } = record;
  const ending = label("outcome", place);
  const facts = [fact("Outcome", ending, session ? `score ${fixed(session.productivity)}` : record.error_kind ?? "", `ending-word ${ending}`)];
  if (score) facts.push(fact("Reward", fixed(score.reward)));
  if (session) {
    facts.push(fact("User effort", session.session_effort, verdictReason(record), `effort ${session.session_effort}`));
    const followed = session.follows_preference;
    const silent = followed && !session.num_questions ? "nothing was asked" : "";
    facts.push(fact("Preference", followed ? "followed" : "broken", silent, followed ? "good-word" : "bad-word"));
    facts.push(fact("Questions", String(session.num_questions), `in ${counted(record.turns.length, "turn")}`));
  }
  if (record.num_policy_tokens !== undefined && record.num_policy_tokens !== null) {
    facts.push(fact("Tokens", record.num_policy_tokens.toLocaleString("en"), "by the agent"));
  }
  if (timings && timings.total) facts.push(fact("Time", seconds(timings.total)));
  return make("dl", { class: "facts" }, facts);
}

function taskCard(record) {
  const knows = record.precise_prompt && record.precise_prompt !== record.prompt;
  const wish = data.index.preferences[record.preference]?.[0] ?? "";
  return make("section", { class: "task", "aria-label": "Task" },
    make("div", { class: knows ? "prompts two" : "prompts" },
      make("div", { class: "prompt" },
        make("h4", {}, record.is_precise ? "What the agent was told: the precise prompt" : "What the agent was told: the vague prompt"),
        longText(record.prompt)),
      knows ? make("div", { class: "prompt known" }, make("h4", {}, "What the user knew"), longText(record.precise_prompt)) : null),
    make("div", { class: "wish" },
      make("h4", {}, "The user's preference"),
      make("div", { class: "wish-text" }, make("code", { dir: "ltr" }, longText(record.preference, { lines: 2, chars: 200 })), wish ? make("span", {}, wish) : null)));
}

// Arguments stand in the log as JSON text. An object is shown name by name; anything else as it stands.
function argumentList(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch {
    return longText(text, { code: true });
  }
  if (parsed === null || typeof parsed !== "object" || Array.isArray(parsed)) return longText(text, { code: true });
  const entries = Object.entries(parsed);
  if (!entries.length) return null;
  return make("dl", { class: "arguments" }, entries.map(([name, value]) => [
    make("dt", {}, name.length > 60 ? `${name.slice(0, 60)}…` : name),
    make("dd", {}, longText(typeof value === "string" ? value : JSON.stringify(value, null, 1), { code: true })),
  ]));
}

function question(turn) {
  const { answer } = turn;
  const verdict = answer.follows_preference
    ? badge("good", "✓ as this user likes it", "the question follows the preference")
    : badge("bad", "✗ not as this user likes it", "the question breaks the preference");
  return make("div", { class: "dialogue" },
    make("div", { class: "question" }, make("div", { class: "who" }, "Question to the user"), longText(turn.question ?? "")),
    make("div", { class: `answer ${answer.effort}` },
      make("div", { class: "who" }, "User"),
      longText(answer.text),
      make("div", { class: "judged" }, effortBadge(answer.effort), verdict,
        make("span", { class: "decided", title: "who gave these two verdicts" }, `decided by ${answer.decided_by}`))));
}

function call(turn) {
  const { name, arguments: given } = turn.call;
  // The question stands in the dialogue below; to show it twice would only be longer.
  if (turn.answer) return null;
  const finishing = name === "finish";
  return make("div", { class: finishing ? "call finish" : "call" },
    make("div", { class: "call-name" }, make("span", { class: "sr" }, "Tool call: "), longText(name, { code: true, lines: 1, chars: 120 })),
    argumentList(given));
}

function observation(turn) {
  if (turn.observation === null || turn.observation === undefined) return null;
  if (turn.answer && turn.observation === turn.answer.text) return null;
  const kind = turn.is_error ? "observation error" : "observation";
  return make("div", { class: kind },
    make("div", { class: "who" }, turn.is_error ? "Told of its mistake" : "Result"),
    turn.observation === "" ? make("div", { class: "nothing" }, "(empty)") : longText(turn.observation, { code: true }));
}

function turnItem(turn, number) {
  const marks = [];
  if (turn.is_error) marks.push(badge("bad", "agent's mistake"));
  if (turn.truncated) marks.push(badge("bad", "cut off at its token limit"));
  return make("li", { class: "turn" },
    make("div", { class: "turn-number", "aria-hidden": "true" }, String(number + 1)),
    make("div", { class: "turn-body" },
      make("div", { class: "who agent" }, make("span", {}, `Agent, turn ${number + 1}`), marks),
      turn.text ? longText(turn.text) : null,
      turn.call ? call(turn) : null,
      turn.answer ? question(turn) : null,
      observation(turn)));
}

function ending(record) {
  const stopped = (record.stop_reason ?? "unknown").replaceAll("_", " ");
  const parts = [make("div", { class: "who" }, `Ended: ${stopped}`)];
  if (record.final_answer !== null && record.final_answer !== undefined) parts.push(make("h4", {}, "Final answer"), longText(record.final_answer, { code: true }));
  else if (!record.error) parts.push(make("p", { class: "nothing" }, "No final answer."));
  if (record.error) parts.push(make("h4", {}, "What failed"), longText(record.error, { code: true }),
    make("p", { class: "nothing" }, "Not the agent's doing: the session counts in no score."));
  return make("section", { class: `card end ${record.error ? "failed" : ""}`, "aria-label": "End" }, parts);
}

function costCard(record) {
  const { timings } = record;
  const total = timings?.total;
  if (!total) return null;
  const parts = PARTS_OF_TIME.filter((name) => timings[name] >= 0.001).map((name) => [name, timings[name]]);
  const bar = make("div", { class: "timebar", "aria-hidden": "true" }, parts.map(([name, value]) => {
    const part = make("span", { class: `time-${name}` });
    part.style.flexGrow = String(value / total);
    return part;
  }));
  const legend = parts.map(([name, value]) => make("li", {}, make("span", { class: `key time-${name}` }), `${name} ${seconds(value)}`));
  const tokens = [["prompt", record.num_prompt_tokens], ["conversation", record.num_completion_tokens], ["of them the agent's", record.num_policy_tokens]]
    .filter(([, count]) => typeof count === "number")
    .map(([name, count]) => `${count.toLocaleString("en")} ${name}`);
  return make("section", { class: "card", "aria-label": "Time and tokens" },
    make("h4", {}, "Time and tokens"), bar, make("ul", { class: "legend" }, legend),
    tokens.length ? make("p", { class: "quiet" }, `Tokens: ${tokens.join(", ")}`) : null);
}

function recordCard(record) {
  const details = make("details", { class: "record" }, make("summary", {}, "The record as JSON"));
  // Written out only when opened: most sessions are only read.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(longText(JSON.stringify(record, null, 2), { code: true, lines: 60, chars: 6000 }));
  });
  return details;
}

function conversation(record, place) {
  return [
    verdicts(record, place),
    taskCard(record),
    make("ol", { class: "turns" }, record.turns.map(turnItem)),
    ending(record),
    record.score ? rewardCard(record, data.index.weights[label("run", place)]) : null,
    costCard(record),
    recordCard(record),
  ].filter(Boolean);
}

// What stands in the reader before a session is chosen: how to read the list.
function guide() {
  const dot = (kind) => make("span", { class: `ending ${kind}`, "aria-hidden": "true" });
  const lines = [
    [[dot("solved"), "solved"], "the task is done completely"],
    [[dot("partly"), "partly"], "a part of it is done"],
    [[dot("wrong"), "wrong"], "nothing of it is done"],
    [[dot("failed"), "failed"], "not the agent's doing; counts in no score"],
    [make("span", { class: "effort low" }, "low"), "the user had the answer at hand, or nothing was asked"],
    [make("span", { class: "effort medium" }, "medium"), "the user could not or would not answer"],
    [make("span", { class: "effort high" }, "high"), "the user had to find something out, or the agent stayed silent and wrong on a vague prompt"],
  ];
  return make("div", { class: "guide" },
    make("h3", {}, "Choose a session to read it"),
    make("dl", {}, lines.map(([term, text]) => [make("dt", {}, term), make("dd", {}, text)])));
}
