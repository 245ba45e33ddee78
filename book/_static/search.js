// The search page: shows what each model ranked first for a query that was embedded beforehand. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("search-page");
  if (!box) return;
  const data = JSON.parse(document.getElementById("search-data").textContent);
  const [select, input, known, some, summary, results] =
    ["collection", "query", "known", "some", "summary", "found"].map((name) => document.getElementById(`search-${name}`));
  const N_SOME = 6, counts = results.parentElement.appendChild(document.createElement("p"));

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const collection = () => data[select.value];

  const tile = (image, isRight, text) => {
    const { columns, images, sheet } = collection(), n_rows = Math.ceil(images.length / columns);
    const at = (k, n) => `${(100 * k) / (n - 1)}%`;
    const picture = make("span", {
      class: "search-picture", role: "img", "aria-label": images[image],
      style: `background: url("${sheet}") ${at(image % columns, columns)} ${at(Math.floor(image / columns), n_rows)} / ${100 * columns}% padding-box`,
    });
    const caption = make("span", { class: "search-caption" }, isRight ? `✓ ${text}` : images[image]);
    return make("li", { class: isRight ? "search-tile right" : "search-tile" }, picture, caption);
  };

  const show = (query) => {
    input.value = query.text;
    const { models, images } = collection();
    const rows = models.map((model, m) => {
      const rank = query.ranks.length ? `, the right image at rank ${query.ranks[m]} of ${images.length}` : "";
      const tiles = query.found[m].map((image) => tile(image, query.right.includes(image), query.text));
      return make("section", {}, make("h3", {}, `${model}${rank}`), make("ol", { class: "search-row" }, ...tiles));
    });
    results.replaceChildren(...rows);
    summary.textContent = query.ranks.length
      ? `“${query.text}”: the right image is at rank ${query.ranks.map((r, m) => `${r} for ${models[m]}`).join(", ")}.`
      : `“${query.text}” is no text of the set, so that no image is marked as right.`;
  };

  // Other suggestions each time, so that a reader with a mouse sees more than the first ones.
  const suggest = () => {
    const { queries } = collection(), start = Math.floor(Math.random() * queries.length);
    offer(Array.from({ length: N_SOME }, (_, i) => queries[(start + i * 17) % queries.length]));
  };
  const offer = (chosen) => {
    some.replaceChildren("or ", ...new Set(chosen.map((query) => {
      const button = make("button", { type: "button" }, query.text);
      button.addEventListener("click", () => show(query));
      return button;
    })), another);
  };
  const another = make("button", { type: "button", class: "search-more" }, "other texts");
  another.addEventListener("click", suggest);

  // Opens on a text whose image all models find, at different ranks.
  const choose = () => {
    const asked = collection().queries.filter(({ ranks }) => ranks.length), { models } = collection();
    const first = models.map((model, m) => `${asked.filter(({ ranks }) => ranks[m] === 1).length} by ${model}`);
    counts.textContent = `Of ${asked.length} texts with a right image, this image is ranked first for ${first.join(", ")}.`;
    known.replaceChildren(...collection().queries.map((query) => make("option", { value: query.text })));
    suggest();
    show(collection().queries.find(({ ranks }) => Math.max(...ranks) <= 6 && new Set(ranks).size > 1));
  };

  const matches = () => collection().queries.filter((q) => q.text.toLowerCase().includes(input.value.trim().toLowerCase()));
  const answer = () => {
    const wanted = input.value.trim().toLowerCase(), found = matches();
    const query = found.find((q) => q.text.toLowerCase() === wanted) || (wanted && found[0]);
    if (query) return show(query);
    results.replaceChildren();
    summary.textContent = `No text with “${input.value}” was embedded beforehand: choose one from the list.`;
  };
  input.addEventListener("input", () => offer(matches().slice(0, N_SOME)));
  input.addEventListener("change", answer);
  input.addEventListener("focus", () => input.select());
  select.addEventListener("change", choose);
  box.hidden = false;
  choose();
})();
