// What is shown of answers, and the table that is saved. Text goes in as text: no name of a file or class is markup.

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const percent = (score) => `${(100 * score).toFixed(1)} %`;
const ms = (value) => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;

/** One variant's answer: its classes, best first, and where the time went; or why there is none. */
export function showAnswer(variant, answer, named) {
  const box = element("div", "answer");
  if (named) box.append(element("p", "variant", variant));
  if (answer.error) {
    box.append(element("p", "error", [answer.error.message, answer.error.hint].filter(Boolean).join(" ")));
    return box;
  }
  const list = element("ol");
  for (const { label, score } of answer.top) {
    const row = element("li");
    const [track, fill] = [element("span", "track"), element("i")];
    fill.style.width = `${100 * score}%`;
    track.append(fill);
    row.append(element("span", "", label), element("span", "", percent(score)), track);
    list.append(row);
  }
  const { decode_ms, wait_ms, engine_ms, batch } = answer.times;
  const shared = batch > 1 ? ` (${batch} together)` : "";
  box.append(list, element("p", "times", `decode ${ms(decode_ms)} · wait ${ms(wait_ms)} · engine ${ms(engine_ms)}${shared}`));
  return box;
}

/** A card for a picture, before it is answered. */
export function makeCard(name) {
  const card = element("li", "card");
  const thumbnail = element("img");
  thumbnail.alt = "";
  const title = element("h3", "", name);
  title.title = name;
  card.append(thumbnail, title, element("div", "answers"));
  return card;
}

/** Whether two variants gave different classes to a picture that both answered. */
export function differ(answers) {
  const labels = Object.values(answers).map((answer) => answer.label);
  return labels.length > 1 && labels.every((label) => label !== undefined) && new Set(labels).size > 1;
}

/** Put a picture's answers into its card. */
export function fillCard(card, answers, thumbnail) {
  if (thumbnail) card.querySelector("img").src = thumbnail;
  const box = card.querySelector(".answers");
  const variants = Object.keys(answers);
  const [first] = Object.values(answers);
  if (first.error && Object.values(answers).every((answer) => answer.error?.message === first.error.message)) {
    box.replaceChildren(showAnswer("", first, false)); // the picture's own trouble
    return;
  }
  box.replaceChildren(...variants.map((variant) => showAnswer(variant, answers[variant], variants.length > 1)));
  if (differ(answers)) {
    card.classList.add("differs");
    card.querySelector("h3").prepend(element("span", "badge", "differs"));
  }
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The line above the cards: how many, how many differ, and the median engine time of each variant. */
export function summarize(rows, variants, pending, most) {
  const answered = rows.filter((row) => Object.values(row.answers).some((answer) => answer.label !== undefined));
  const failed = rows.length - answered.length;
  const parts = [`${rows.length} ${rows.length === 1 ? "picture" : "pictures"}`];
  if (pending) parts.push(`${pending} to come`);
  if (failed) parts.push(`${failed} without an answer`);
  if (variants.length > 1) parts.push(`${rows.filter((row) => differ(row.answers)).length} on which they differ`);
  for (const variant of variants) {
    const times = rows.map((row) => row.answers[variant]?.times?.engine_ms).filter((time) => time !== undefined);
    if (times.length) parts.push(`${variant}: engine ${ms(median(times))} (median of ${times.length})`);
  }
  if (rows.length > most) parts.push(`up to ${most} are shown, the table has all`);
  return parts.join(" · ");
}

const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));

/** All answers as CSV (RFC 4180), a line for each picture and variant. */
export function toCsv(rows, top) {
  const ranks = [...Array(top).keys()].map((rank) => (rank ? `_${rank + 1}` : ""));
  const head = ["path", "variant", ...ranks.flatMap((rank) => [`label${rank}`, `score${rank}`]), "decode_ms", "wait_ms", "engine_ms", "batch", "error"];
  const lines = [head];
  for (const { name, answers } of rows) {
    for (const [variant, answer] of Object.entries(answers)) {
      const scored = ranks.flatMap((_, rank) => [answer.top?.[rank]?.label ?? "", answer.top?.[rank]?.score.toFixed(6) ?? ""]);
      const times = ["decode_ms", "wait_ms", "engine_ms"].map((part) => answer.times?.[part].toFixed(3) ?? "");
      lines.push([name, variant, ...scored, ...times, answer.times?.batch ?? "", answer.error?.message ?? ""]);
    }
  }
  return lines.map((line) => line.map(quote).join(",") + "\r\n").join("");
}
