// The chart of the Usage page: by touch, the first tap on a bar shows its value, and the second one
// opens its calls. The arrow keys go from bar to bar.

const bars = [...document.querySelectorAll(".llm-usage-bars a")];
const readout = document.getElementById("llm-readout");
const scroll = document.querySelector(".llm-bars-scroll");
let touched = null;

function show(bar) {
  readout.hidden = false;
  readout.replaceChildren(`${bar.dataset.text} `);
  const link = document.createElement("a");
  link.href = bar.href;
  link.textContent = "Open its calls";
  readout.append(link);
}

function step(event, bar) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const next = by && bars[bars.indexOf(bar) + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

for (const bar of bars) {
  bar.addEventListener("pointerdown", (event) => {
    touched = event.pointerType === "touch" && touched !== bar ? bar : null;
    if (touched) bar.dataset.wait = "";
  });
  bar.addEventListener("click", (event) => {
    if (!("wait" in bar.dataset)) return;
    delete bar.dataset.wait;
    event.preventDefault();
    show(bar);
  });
  bar.addEventListener("keydown", (event) => step(event, bar));
}

// The newest bars first, where not all are in view.
if (scroll) scroll.scrollLeft = scroll.scrollWidth;
