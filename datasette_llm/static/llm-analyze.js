// Shows the progress of a consultation, and reloads the preview when a field changes. Without this
// script the form is posted, and the response comes when the advice is complete.

const form = document.getElementById("llm-analyze");
const send = document.getElementById("llm-send");
const progress = document.getElementById("llm-progress");

// With XMLHttpRequest, whose "load" event means that the response is complete: leaving the page
// earlier would cancel the consultation.
function post(onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("accept", "application/x-ndjson");
    request.onprogress = () => onProgress(request.responseText);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Error("the connection was lost"));
    request.send(new URLSearchParams(new FormData(form)));
  });
}

// The complete lines, parsed.
function lines(text) {
  return text.split("\n").slice(0, -1).map((line) => JSON.parse(line));
}

async function follow() {
  const response = await post((text) => {
    const step = lines(text).at(-1)?.step;
    if (step) progress.textContent = `${step}…`;
  });
  if (!(response.getResponseHeader("content-type") || "").includes("ndjson")) {
    throw new Error(`the server answered with status ${response.status}`);
  }
  const last = lines(response.responseText).at(-1);
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
    progress.textContent = `No advice: ${error.message}`;
    send.disabled = false;
  }
});

// A page from the browser's back-forward cache still has a disabled button.
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
