// Tells what is being done while the advice is made, and shows the preview anew when what would
// be sent changes. Without this script the form is posted, and the advice comes when it is there.

const form = document.getElementById("llm-analyze");
const send = document.getElementById("llm-send");
const progress = document.getElementById("llm-progress");

// With XMLHttpRequest, whose "load" comes when the answer is complete: leaving the page a moment
// earlier would cut it off.
function post(told) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("accept", "application/x-ndjson");
    request.onprogress = () => told(request.responseText);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Error("the connection was lost"));
    request.send(new URLSearchParams(new FormData(form)));
  });
}

// The lines that are complete.
function lines(text) {
  return text.split("\n").slice(0, -1).map((line) => JSON.parse(line));
}

async function follow() {
  const answer = await post((text) => {
    const step = lines(text).at(-1)?.step;
    if (step) progress.textContent = `${step}…`;
  });
  if (!(answer.getResponseHeader("content-type") || "").includes("ndjson")) {
    throw new Error(`the server answered with status ${answer.status}`);
  }
  const last = lines(answer.responseText).at(-1);
  if (!last?.next) throw new Error(last?.error || "the connection ended too early");
  location.assign(last.next);
}

form.addEventListener("submit", async (event) => {
  if (event.submitter && event.submitter.id === "llm-preview") return;
  event.preventDefault();
  send.disabled = true;
  progress.textContent = "Sending…";
  try {
    await follow();
  } catch (error) {
    progress.textContent = `The advice did not come: ${error.message}`;
    send.disabled = false;
  }
});

// A page that comes out of the browser's history has the button as it was left.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

form.addEventListener("change", (event) => {
  if (progress.textContent) return;
  const again = document.getElementById("llm-preview");
  if (event.target.id !== "llm-question") form.requestSubmit(again);
});
document.getElementById("llm-question").addEventListener("change", () => {
  send.disabled = true;
  form.requestSubmit(document.getElementById("llm-preview"));
});
