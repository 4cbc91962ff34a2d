// The list of calls: a filter that is sent leaves out what is empty, so that its address is short
// enough to be shared, and the filter stays open from one page to the next where it was opened.

const form = document.querySelector(".llm-find");
const filters = document.getElementById("filters");
const OPEN = "llm-filters-open";

form.addEventListener("formdata", ({ formData }) => {
  const given = [...formData].filter(([, value]) => value !== "");
  for (const name of new Set(formData.keys())) formData.delete(name);
  for (const [name, value] of given) formData.append(name, value);
});

function remembered() {
  try {
    return sessionStorage.getItem(OPEN) === "yes";
  } catch {
    return false; // a browser that stores nothing
  }
}

if (remembered() && matchMedia("(min-width: 1000px)").matches) filters.open = true;
filters.addEventListener("toggle", () => {
  try {
    sessionStorage.setItem(OPEN, filters.open ? "yes" : "no");
  } catch {
    // It will be closed again.
  }
});
