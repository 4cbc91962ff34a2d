// Tests the models of a purpose and shows each result when it is there. Without this script the
// form is posted, and the page shows all results at the end. The server renders the rows.

const form = document.getElementById("llm-test");
const section = document.getElementById("llm-results");
const progress = document.getElementById("llm-progress");
const body = section.querySelector("tbody");
const AT_ONCE = 4;

async function page(address, options) {
  const response = await fetch(address, { ...options, headers: { accept: "text/html" } });
  const text = await response.text();
  return new DOMParser().parseFromString(text, "text/html");
}

async function candidates(purpose) {
  const query = new URLSearchParams({ purpose });
  const found = (await page(`${form.action}?${query}`)).getElementById("llm-candidates");
  if (!found) throw new Error("the list of models is missing");
  const models = [...found.querySelectorAll("[data-model]")].map((item) => item.dataset.model);
  found.querySelector("details")?.remove();
  document.getElementById("llm-candidates").replaceWith(document.importNode(found, true));
  return models;
}

function addRow(model) {
  const row = body.insertRow();
  row.setAttribute("role", "row");
  const head = document.createElement("th");
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  head.className = "llm-text";
  head.textContent = model;
  row.append(head);
  showStatus(row, "waiting");
  return row;
}

function showStatus(row, text) {
  if (row.cells.length > 1) row.deleteCell(1);
  const cell = row.insertCell();
  cell.setAttribute("role", "cell");
  cell.colSpan = 7;
  cell.textContent = text;
}

async function test(model, purpose, row) {
  showStatus(row, "testing…");
  try {
    const sent = new URLSearchParams({ model, purpose });
    const answer = await page(form.action, { method: "POST", body: sent });
    const result = answer.querySelector("#llm-results tbody tr");
    if (!result) throw new Error(answer.body.textContent.trim().slice(0, 500));
    row.replaceWith(document.importNode(result, true));
  } catch (error) {
    showStatus(row, `The test could not be done: ${error.message}`);
  }
}

function showProgress(done, count) {
  const good = body.querySelectorAll("tr[data-ok]").length;
  progress.textContent = done < count
    ? `${done} of ${count} tested`
    : `${good} of ${count} answered`;
}

async function testAll(models, purpose) {
  body.replaceChildren();
  const rows = models.map((model) => addRow(model));
  section.hidden = false;
  showProgress(0, models.length);
  let next = 0, done = 0;
  const work = async () => {
    while (next < models.length) {
      const index = next++;
      await test(models[index], purpose, rows[index]);
      showProgress(++done, models.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

form.addEventListener("submit", async (event) => {
  const { model, purpose } = Object.fromEntries(new FormData(form));
  if (!model && !purpose) return; // the server reports what is missing
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  document.querySelector("#llm-results-title small")?.remove();
  document.getElementById("llm-refused")?.remove();
  try {
    if (model) document.getElementById("llm-candidates").replaceChildren();
    await testAll(model ? [model] : await candidates(purpose), purpose);
  } catch (error) {
    section.hidden = false;
    progress.textContent = `The test could not be done: ${error.message}`;
  } finally {
    button.disabled = false;
  }
});
