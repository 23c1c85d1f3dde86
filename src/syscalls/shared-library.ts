/** Functions of C libraries that are on nearly every system: found once per thread, or not at all. */

import koffi from "koffi";

type Library = ReturnType<typeof koffi.load>;

/** Where a function may be: a library (undefined: this process itself) and a prefix of its names. */
export interface LibraryPlace {
  readonly library: string | undefined;
  readonly prefix: string;
}

/** The library of the first place that has `prefix + symbol`, or undefined. */
export function findLibrary(
  places: readonly LibraryPlace[],
  symbol: string,
): { readonly library: Library; readonly prefix: string } | undefined {
  for (const { library: name, prefix } of places) {
    try {
      const library = koffi.load(name ?? null);
      library.func(`int ${prefix}${symbol}()`);
      return { library, prefix };
    } catch {
      // Not there: the next place.
    }
  }
  return undefined;
}
