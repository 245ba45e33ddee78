// The order and the quotations of the book's search, on top of Sphinx's: pages by BM25, from the counts that
// cibr_book.pages.discovery writes beside the index. Scores: a term's definition 20, the page configured for a query 15,
// other pages and headings up to 10, names of the reference up to 9.
(() => {
  "use strict";
  const { pages, lengths, words, entries } = searchCounts;
  const SATURATION = 1.2, LENGTH = 0.75; // the usual k1 and b
  const mean = lengths.reduce((sum, n) => sum + n, 0) / pages.length;

  const relevance = (page, stems) => {
    const i = pages.indexOf(page);
    const norm = SATURATION * (1 - LENGTH + (LENGTH * lengths[i]) / mean);
    const weight = /^book\/api|^CHANGELOG/.test(page) ? 0.6 : 1; // explanations before the reference
    return weight * stems.reduce((sum, stem) => {
      const on = words[stem] ?? {}, count = on[i] ?? 0, n = Object.keys(on).length;
      const rarity = Math.log(1 + (pages.length - n + 0.5) / (n + 0.5));
      return sum + (rarity * count * (SATURATION + 1)) / (count + norm);
    }, 0);
  };

  // Sphinx lists a page's title again as a heading of it, since it does not know the chapter's number.
  const isRepeated = (title) => {
    const [page, heading] = title.replace(/<[^>]*>/g, "").replace(/^[\d.]+ /, "").split(" > ");
    return page === heading;
  };

  const perform = Search._performSearch;
  Search._performSearch = (query, stems, ...others) => {
    const asked = query.toLowerCase().trim();
    const results = perform(query, stems, ...others).filter(([page, title]) => pages.includes(page) && !isRepeated(title));
    const isPage = ([, , anchor, description]) => !anchor && !description;
    const relevances = results.map((result) => (isPage(result) ? relevance(result[0], [...stems]) : 0));
    const most = Math.max(...relevances, 1e-9);
    results.forEach((result, i) => {
      const [, title, anchor, description, score] = result;
      if (anchor.startsWith("#term-")) result[4] = score / 5; // 100 for the whole term
      else if (description) result[4] = title.toLowerCase().split(".").at(-1) === asked ? 9 : 4;
      else result[4] = isPage(result) ? (10 * relevances[i]) / most : (10 * score) / 16; // 15 for a heading, 16 for a title
    });
    const page = entries[asked], i = Search._index.docnames.indexOf(page);
    if (i >= 0) {
      const own = results.find((result) => result[0] === page && isPage(result));
      if (own) own[4] = 15;
      else results.push([page, Search._index.titles[i], "", null, 15, Search._index.filenames[i]]);
    }
    return results.sort((a, b) => a[4] - b[4]); // Sphinx shows the last one first
  };

  Search.htmlToText = (text, anchor) => {
    const article = new DOMParser().parseFromString(text, "text/html").querySelector("article");
    article.querySelectorAll(".headerlink, script, style, div.math, div.highlight").forEach((element) => element.remove());
    article.querySelectorAll("span.math").forEach((element) => { element.textContent = element.dataset.plain ?? ""; });
    const target = anchor ? article.querySelector(`[id="${CSS.escape(anchor.slice(1))}"]`) : article;
    const part = target?.tagName === "DT" ? target.nextElementSibling : target; // a term's definition
    return (part ?? article).textContent.replace(/\s+/g, " ");
  };
})();
