/** A measurement that changes an image: for which images it is made, and what it leaves in them. */

import type { Cell, FileCell } from "./cell.ts";
import type { WriteImageName } from "./image-names.ts";

/** What the image file shows if the server did the work: `full`: every cluster is allocated. */
export type Outcome = "full" | "punched" | "any";

interface WriteCellShape {
  readonly images: readonly WriteImageName[];
  readonly outcome: Outcome;
  /** The image is this many times as large as the others; for empty images without backing file. */
  readonly sizeFactor?: number;
  /** Servers store what they read from backing files. */
  readonly copyOnRead?: boolean;
}

export type WriteCell = WriteCellShape & (Cell | FileCell);
