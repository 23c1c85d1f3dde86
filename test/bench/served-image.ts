/** What a server is told about an image. */

export interface ServedImage {
  readonly name: string;
  readonly format: "qcow2" | "raw";
  readonly path: string;
  /** Bytes. */
  readonly virtualSize: number;
}
