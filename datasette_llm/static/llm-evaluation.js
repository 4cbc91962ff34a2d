// For the pages of an evaluation: progress without reloading, and verdicts by keyboard.

const PAUSE_MS = 1_500;
const RUNNING = ["running", "judging"];
const VERDICTS = { b: "better", s: "same", w: "worse" };
const LINKS = { n: "next", p: "prev" };
const SHORTCUTS = "datasette-llm-evaluation-shortcuts";

/** Show how many answers there are, until the evaluation ends; then show the whole page again. */
async function follow(progress) {
  const bar = document.getElementById("llm-bar");
  const answered = document.getElementById("llm-answered");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    let evaluation;
    try {
      const response = await fetch(progress.dataset.json);
      ({ evaluation } = await response.json());
    } catch {
      continue; // the site restarts, or the network is gone for a moment
    }
    if (evaluation === undefined || !RUNNING.includes(evaluation.state)) break;
    bar.value = evaluation.answered;
    answered.textContent = evaluation.answered.toLocaleString("en");
  }
  location.reload();
}

/** Give the verdict of a key, or go where it leads. */
function press(event) {
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (!shortcuts.checked || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = LINKS[event.key] && document.querySelector(`a[rel=${LINKS[event.key]}]`);
  const form = document.querySelector(".llm-verdict-form[data-judged='']");
  if (link) link.click();
  else if (VERDICTS[event.key] && form)
    form.querySelector(`button[value=${VERDICTS[event.key]}]`).click();
}

/** Offer the shortcuts, on unless they were switched off in this browser. */
function offer() {
  try {
    shortcuts.checked = localStorage.getItem(SHORTCUTS) !== "off";
  } catch {
    shortcuts.checked = true; // nothing may be stored here
  }
  document.getElementById("llm-shortcuts").hidden = false;
  shortcuts.addEventListener("change", () => {
    try {
      localStorage.setItem(SHORTCUTS, shortcuts.checked ? "on" : "off");
    } catch {
      // for this page alone
    }
  });
  document.addEventListener("keydown", press);
}

const shortcuts = document.getElementById("llm-shortcuts-on");
const progress = document.getElementById("llm-progress");
if (RUNNING.includes(progress?.dataset.state)) follow(progress);
if (shortcuts) offer();
