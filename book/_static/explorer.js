// The figure "move beta": draws the numbers that the page holds as JSON, at the point that the
// page's address names. No library, no network.
(() => {
  "use strict";
  const box = document.getElementById("explorer");
  if (!box) return;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const [conditions, methods, slider, value, summary, drawings] =
    ["condition", "method", "beta", "value", "summary", "drawings"].map((name) => document.getElementById(`explorer-${name}`));
  const panels = [...drawings.querySelectorAll("svg")];
  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 40, RIGHT = 292, TOP = 28, BOTTOM = 198;
  const LOWEST = -4; // points: a curve that falls further leaves its panel
  const RING = 8;

  const add = (parent, tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const condition = () => data.conditions[Number(conditions.value)];
  const curve = () => condition().curves[Number(methods.querySelector(":checked").value)];
  const point = () => curve().points[Number(slider.value)];
  const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;
  const told = (p, i) => `${signed(p.difference[i])} [${signed(p.low[i])}, ${signed(p.high[i])}]`;

  const scales = () => {
    const points = condition().curves.flatMap((c) => c.points);
    const logs = points.map((p) => Math.log10(p.beta)), [left, right] = [Math.min(...logs), Math.max(...logs)];
    const low = Math.max(LOWEST, Math.floor(Math.min(...points.flatMap((p) => p.low))));
    const high = Math.min(4, Math.ceil(Math.max(...points.flatMap((p) => p.high))));
    return {
      low, high, left, right,
      x: (beta) => LEFT + 8 + ((Math.log10(beta) - left) / (right - left)) * (RIGHT - LEFT - 16),
      y: (points) => BOTTOM - ((points - low) / (high - low)) * (BOTTOM - TOP),
    };
  };

  const drawPanel = (svg, i) => {
    [...svg.children].slice(1).forEach((child) => child.remove()); // the title stays
    const { low, high, left, right, x, y } = scales(), chosen = point();
    add(svg, "text", { x: LEFT, y: 16, class: "strong" }, `${data.scores[i]}, points`);
    const clip = add(svg, "clipPath", { id: `explorer-clip-${i}` });
    add(clip, "rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP });
    for (let t = Math.ceil(low); t <= high; t += high - low > 5 ? 2 : 1) {
      add(svg, "line", { x1: LEFT, x2: RIGHT, y1: y(t), y2: y(t), class: t ? "grid" : "zero" });
      add(svg, "text", { x: LEFT - 5, y: y(t) + 4, "text-anchor": "end" }, t > 0 ? `+${t}` : `${t}`.replace("-", "−"));
    }
    for (let t = Math.ceil(left); t <= right; t += 1)
      add(svg, "text", { x: x(10 ** t), y: BOTTOM + 15, "text-anchor": "middle" }, Number((10 ** t).toPrecision(3)));
    add(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 34, "text-anchor": "middle" }, "β");
    const inside = add(svg, "g", { "clip-path": `url(#explorer-clip-${i})` });
    const draw = (c, strong) => {
      const places = c.points.map((p) => [x(p.beta), y(p.difference[i])]);
      const style = { style: `--curve: ${c.colour}`, class: strong ? "curve strong" : "curve" };
      add(inside, "polyline", { points: places.map((place) => place.join()).join(" "), ...style });
      c.points.forEach((p) => {
        if (strong) add(inside, "line", { x1: x(p.beta), x2: x(p.beta), y1: y(p.low[i]), y2: y(p.high[i]), style: style.style, class: "interval" });
      });
      for (const [cx, cy] of places) add(inside, "circle", { cx, cy, r: strong ? 4 : 2.5, style: style.style, class: strong ? "dot strong" : "dot" });
    };
    condition().curves.filter((c) => c !== curve()).forEach((c) => draw(c, false));
    draw(curve(), true);
    // A point beyond the panel has its ring at the edge, with an arrow and its value.
    const place = y(chosen.difference[i]);
    const shown = Math.min(BOTTOM - RING, Math.max(TOP + RING, place));
    add(svg, "circle", { cx: x(chosen.beta), cy: shown, r: RING, class: "chosen" });
    if (place > BOTTOM || place < TOP) {
      const label = `${place > BOTTOM ? "↓" : "↑"} ${signed(chosen.difference[i])}`;
      const isRight = x(chosen.beta) > (LEFT + RIGHT) / 2; // the label is on the other side
      const side = x(chosen.beta) + (isRight ? -1 : 1) * (RING + 4);
      const at = { x: side, y: shown + 4, "text-anchor": isRight ? "end" : "start" };
      add(svg, "text", { ...at, class: "beyond" }, label);
    }
  };

  const draw = () => {
    const p = point();
    value.textContent = p.beta;
    slider.setAttribute("aria-valuetext", `beta ${p.beta}`);
    panels.forEach(drawPanel);
    const clip = condition().clip.map((score) => score.toFixed(1)).join(", ");
    const all = data.scores.map((name, i) => `${name} ${told(p, i)}`).join("; ");
    const text = ` ${curve().name} at β = ${p.beta} minus tuned CLIP (${clip} %), in points with 95 % ` +
      `intervals over ${p.n_seeds} paired seeds: ${all}.`;
    const strong = document.createElement("strong");
    strong.textContent = verdict(p);
    summary.replaceChildren(strong, text);
  };

  // Scores that gain and lose after the correction, and those whose interval alone excludes zero.
  const verdict = (p) => {
    const named = (belongs) => data.scores.filter((_, i) => belongs(i)).join(" and ");
    const differs = (i) => p.low[i] > 0 || p.high[i] < 0;
    const parts = [
      ["Gain, also after correction", named((i) => p.survives[i] && p.difference[i] > 0)],
      ["Loss, also after correction", named((i) => p.survives[i] && p.difference[i] < 0)],
      ["Not detectable after correction", named((i) => !p.survives[i] && differs(i))],
    ].filter(([, names]) => names);
    return parts.map(([start, names]) => `${start}: ${names}.`).join(" ") || "No detectable difference from CLIP.";
  };

  // The slider stays as near as it can to the beta that was chosen.
  const chooseMethod = (beta) => {
    const away = curve().points.map((p) => Math.abs(Math.log(p.beta / beta)));
    slider.max = curve().points.length - 1;
    slider.value = away.indexOf(Math.min(...away));
    draw();
  };
  const chooseCondition = (beta) => {
    const name = methods.querySelector(":checked")?.parentElement.textContent.trim();
    const names = condition().curves.map((c) => c.name), checked = Math.max(0, names.indexOf(name));
    methods.replaceChildren(methods.firstElementChild, ...condition().curves.map((c, i) => {
      const label = document.createElement("label"), choice = document.createElement("input"), swatch = document.createElement("i");
      Object.assign(choice, { type: "radio", name: "explorer-penalty", value: i, checked: i === checked });
      swatch.style.setProperty("--curve", c.colour);
      label.append(choice, swatch, c.name);
      return label;
    }));
    chooseMethod(beta);
  };

  // The address: #data=...&penalty=...&beta=..., by name, so that it outlives a change of the table.
  const remember = () => {
    const place = { data: condition().name, penalty: curve().name, beta: point().beta };
    history.replaceState(null, "", `#${new URLSearchParams(place)}`);
  };
  const recall = () => {
    const place = new URLSearchParams(location.hash.slice(1));
    const known = data.conditions.findIndex((c) => c.name === place.get("data"));
    if (known >= 0) conditions.value = known;
    beta = Number(place.get("beta")) || beta;
    chooseCondition(beta);
    const wanted = condition().curves.findIndex((c) => c.name === place.get("penalty"));
    if (wanted < 0) return;
    methods.querySelectorAll("input")[wanted].checked = true;
    chooseMethod(beta);
  };

  data.conditions.forEach((c, i) => conditions.add(new Option(c.name, i)));
  let beta = 0.1;
  conditions.addEventListener("change", () => chooseCondition(beta));
  methods.addEventListener("change", () => chooseMethod(beta));
  slider.addEventListener("input", () => {
    beta = point().beta;
    draw();
  });
  for (const control of [conditions, methods]) control.addEventListener("change", remember);
  slider.addEventListener("input", remember);
  addEventListener("hashchange", recall);
  box.hidden = false;
  recall();
})();
