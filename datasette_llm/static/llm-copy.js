// Gives each text that is worth copying a button that copies it. Without this script it can be
// selected.

// Of what is shown as HTML, the text that it was made of.
const textOf = (source) => source.dataset.copyText ?? source.innerText;

// Only pages that come over HTTPS, or from this machine, may use the clipboard directly.
async function copy(source) {
  if (navigator.clipboard) return navigator.clipboard.writeText(textOf(source));
  const area = document.createElement("textarea");
  area.value = textOf(source);
  source.after(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser refused");
}

function addButton(source) {
  if (!source.innerText.trim() && !source.textContent.trim()) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "llm-copy";
  const what = source.dataset.copy || source.getAttribute("aria-label") || "";
  const label = what ? `Copy ${what}` : "Copy";
  const status = document.createElement("span");
  status.setAttribute("role", "status");
  status.className = "llm-copied";
  button.textContent = label;
  button.addEventListener("click", async () => {
    try {
      await copy(source);
      status.textContent = "Copied";
    } catch (error) {
      status.textContent = `Not copied: ${error.message}`;
    }
  });
  source.after(button, status);
}

export function addCopyButtons(root) {
  for (const source of root.querySelectorAll("[data-copy]")) addButton(source);
}

addCopyButtons(document);
