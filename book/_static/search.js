// The search page: the photos that each model ranked first for a text that was embedded beforehand.
// No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("search-page");
  if (!box) return;
  const at = (name) => document.getElementById(`search-${name}`);
  const { columns, images, models, queries, sheet } = JSON.parse(at("data").textContent);
  const N_SOME = 6;
  const input = at("query");

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const tile = (image, isRight, text) => {
    const column = (100 * (image % columns)) / (columns - 1);
    const row = (100 * Math.floor(image / columns)) / (Math.ceil(images.length / columns) - 1);
    const place = `${column}% ${row}% / ${100 * columns}%`;
    const picture = make("span", {
      class: "search-picture",
      role: "img",
      "aria-label": images[image],
      style: `background: url("${sheet}") ${place} padding-box`,
    });
    const caption = isRight ? `✓ ${text}` : images[image];
    const shown = make("span", { class: "search-caption" }, caption);
    return make("li", { class: isRight ? "search-tile right" : "search-tile" }, picture, shown);
  };

  const show = (query) => {
    input.value = query.text;
    const { ranks, right } = query;
    const sections = models.map((model, m) => {
      const rank = ranks.length ? `, the right photo at rank ${ranks[m]} of ${images.length}` : "";
      const tiles = query.found[m].map((i) => tile(i, right.includes(i), query.text));
      const row = make("ol", { class: "search-row" }, ...tiles);
      return make("section", {}, make("h3", {}, `${model}${rank}`), row);
    });
    at("found").replaceChildren(...sections);
    const told = ranks.map((rank, m) => `${rank} for ${models[m]}`).join("; ");
    at("summary").textContent = ranks.length
      ? `“${query.text}”: the right photo is at rank ${told}.`
      : `“${query.text}” is not a caption of the set, so no photo is marked as right.`;
  };

  const offer = (chosen, ...more) => {
    const buttons = chosen.map((query) => {
      const button = make("button", { type: "button" }, query.text);
      button.addEventListener("click", () => show(query));
      return button;
    });
    at("some").replaceChildren("or ", ...buttons, ...more);
  };

  // Texts in their order, some at a time.
  const first = queries.findIndex((query) => query.ranks.length);
  let next = first;
  const suggest = () => {
    offer(
      Array.from({ length: N_SOME }, (_, i) => queries[(next + i) % queries.length]),
      another,
    );
    next = (next + N_SOME) % queries.length;
  };
  const another = make("button", { type: "button", class: "search-more" }, "other texts");
  another.addEventListener("click", suggest);

  const wanted = () => input.value.trim().toLowerCase();
  const matches = () => queries.filter((query) => query.text.toLowerCase().includes(wanted()));
  const exact = () => matches().find((query) => query.text.toLowerCase() === wanted());
  const type = () => {
    if (exact()) return show(exact());
    const found = matches();
    offer(found.slice(0, N_SOME), another);
    at("found").replaceChildren(); // what was found for the last text is no answer to this one
    const n = found.length === 1 ? "One text contains" : `${found.length || "No"} texts contain`;
    at("summary").textContent = `${n} “${input.value}”. Choose one of the embedded texts.`;
  };
  const enter = () => {
    const query = exact() ?? (wanted() ? matches()[0] : undefined);
    if (query) show(query);
  };
  input.addEventListener("input", type);
  input.addEventListener("change", enter);
  input.addEventListener("focus", () => input.select());

  at("known").replaceChildren(...queries.map((query) => make("option", { value: query.text })));
  box.hidden = false;
  suggest();
  show(queries[first]);
})();
