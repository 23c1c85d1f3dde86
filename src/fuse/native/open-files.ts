/** Files that are open through fuse-native: it hands a number back with each request. */

export interface OpenedFile {
  /** Looked up with each request: a snapshot, or a partition, may be gone by then. */
  readonly nodeid: number;
  /** What the node knows the file by. */
  readonly handle: number;
  /** It was opened with O_DSYNC or O_SYNC: each write is made durable. */
  readonly isSynchronous: boolean;
}

export class OpenFiles {
  readonly #files = new Map<number, OpenedFile>();
  /** Not 0, which fuse-native takes for none; it keeps 31 bits. */
  #last = 0;

  /** Returns the number of the file, > 0. */
  add(file: OpenedFile): number {
    do this.#last = (this.#last % 0x7fff_ffff) + 1;
    while (this.#files.has(this.#last));
    this.#files.set(this.#last, file);
    return this.#last;
  }

  get(fh: number): OpenedFile | undefined {
    return this.#files.get(fh);
  }

  /** The file, which is not open any more. */
  remove(fh: number): OpenedFile | undefined {
    const file = this.#files.get(fh);
    this.#files.delete(fh);
    return file;
  }
}
