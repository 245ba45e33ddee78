// A click on a figure opens it in the page, larger: in a dialog that Esc, its button or a click beside it closes.
// Without this script, or with a modifier key, the link leads to the image as before.
(() => {
  "use strict";
  const article = document.querySelector(".bd-article");
  const links = [...document.querySelectorAll(".bd-article figure a.image-reference")];
  if (!links.length) return;
  const dialog = document.createElement("dialog");
  dialog.className = "figure-dialog";
  dialog.innerHTML = '<form method="dialog"><button>Close</button></form><figure tabindex="0"></figure>';
  article.append(dialog); // inside, so that the page's styles for figures hold, in the dark too
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  const open = (link) => {
    const image = link.querySelector("img"), large = image.cloneNode();
    large.removeAttribute("style");
    large.style.minWidth = image.style.width; // on a phone it scrolls at the size of a desk
    if (link.closest(".tag_gallery")) large.classList.add("gallery");
    const number = link.closest("figure").querySelector(".caption-number");
    dialog.setAttribute("aria-label", number?.textContent.trim() ?? "Figure");
    dialog.querySelector("figure").replaceChildren(large);
    dialog.showModal();
  };
  for (const link of links) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      open(link);
    });
  }
})();
