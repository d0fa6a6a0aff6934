"use strict";
// the language of a text by its script, which decides the font and the forms of Chinese characters; "" where it does not
const languageOf = (() => {
  const scripts = [["ja", /[\p{sc=Hira}\p{sc=Kana}]/u], ["ko", /\p{sc=Hang}/u], ["zh", /\p{sc=Han}/u], ["th", /\p{sc=Thai}/u], ["ar", /\p{sc=Arab}/u], ["hi", /\p{sc=Deva}/u], ["he", /\p{sc=Hebr}/u]];
  return text => scripts.find(([, script]) => script.test(text))?.[0] ?? "";
})();
// properties of an element whose text somebody wrote: the browser finds its direction
const written = text => ({ textContent: text, dir: "auto", ...(languageOf(text) && { lang: languageOf(text) }) });
