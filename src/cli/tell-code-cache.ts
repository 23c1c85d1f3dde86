/** What became of V8's code cache, which the build has made: a Node of another version does without it. */

import { createTrace } from "../trace.ts";

/** Tell whether this program started with its code cache; the loader that the build makes has noted it. */
export function tellCodeCache(): void {
  const state: unknown = Reflect.get(globalThis, Symbol.for("tsimgfs.codeCache"));
  if (state === "refused") {
    createTrace("start")(
      "the code cache is not of this Node (%s): start takes longer; build anew",
      process.version,
    );
  }
}
