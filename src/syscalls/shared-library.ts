/** Functions of C libraries that are on nearly every system: found once per thread, or not at all. */

import { koffi } from "./koffi.ts";

export type Library = ReturnType<typeof koffi.load>;

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
      if (hasFunction(library, `${prefix}${symbol}`)) return { library, prefix };
    } catch {
      // No such library: the next place.
    }
  }
  return undefined;
}

export function hasFunction(library: Library, symbol: string): boolean {
  try {
    library.func(`int ${symbol}()`);
    return true;
  } catch {
    return false;
  }
}
