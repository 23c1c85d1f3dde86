/** The word that somebody may have meant. */

/** More wrong letters make another word. */
const WRONG_MAX = 2;

/** How many letters must be added, removed, replaced, or swapped with the next one: optimal string alignment. */
function distance(one: string, other: string): number {
  const rows = [Array.from({ length: other.length + 1 }, (_, column) => column)];
  for (let i = 1; i <= one.length; i++) {
    const row = [i];
    for (let j = 1; j <= other.length; j++) {
      const isSame = one[i - 1] === other[j - 1];
      const at = (up: number, left: number): number => rows[i - up]?.[j - left] ?? 0;
      let least = Math.min(at(1, 0) + 1, (row[j - 1] ?? 0) + 1, at(1, 1) + (isSame ? 0 : 1));
      const isSwapped =
        i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1];
      if (isSwapped) least = Math.min(least, at(2, 2) + 1);
      row.push(least);
    }
    rows.push(row);
  }
  return rows[one.length]?.[other.length] ?? 0;
}

/** The first of the words that are most like one; undefined: none is like it. */
export function nearestWord(word: string, words: readonly string[]): string | undefined {
  let nearest: string | undefined;
  let least = Math.min(WRONG_MAX, Math.floor(word.length / 2)) + 1;
  for (const candidate of words) {
    const wrong = distance(word, candidate);
    if (wrong >= least) continue;
    nearest = candidate;
    least = wrong;
  }
  return nearest;
}
