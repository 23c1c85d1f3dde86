/**
 * Making the files of a new image, in steps: whoever stops in between, or fails, leaves no new file, and no part of
 * an image in one that was there.
 */

import fs from "node:fs";
import { type Errno, StorageError } from "../errors.ts";
import { imageLength, writeQcow2 } from "../formats/qcow2/create.ts";
import { requireFile, writeQed } from "../formats/qed/create.ts";
import { type CreationPieces, createRaw, requireLength } from "../formats/raw/create.ts";
import { lockForWriting } from "../storage/image-lock.ts";
import { LocalFile } from "../storage/local-file.ts";
import type { WritableStorage } from "../storage/storage.ts";
import { createTrace } from "../trace.ts";
import type { PlannedImage } from "./create-image.ts";

/** What is at the path of an image that was not made: nothing; what was there before; an empty file; a device. */
export type Remainder = "nothing" | "untouched" | "empty" | "overwritten";

/** Carries out a plan. */
export class CreateJob {
  readonly #plan: PlannedImage;
  readonly #files = new OutputFiles();
  readonly #work: CreationPieces;

  /** @param plan nothing of it is done before the first step */
  constructor(plan: PlannedImage) {
    this.#plan = plan;
    this.#work = this.#run();
  }

  /**
   * Write a piece, which takes about a tenth of a second at the most.
   *
   * @returns whether the image is complete, durable and closed
   * @throws {StorageError} EAGAIN: somebody uses the file that is there; EFBIG, ENOSPC, …; as after `abandon`
   */
  step(): boolean {
    return this.#work.next().done === true;
  }

  /** Make durable what was written: at the end there is less to wait for. */
  flush(): void {
    this.#files.sync();
  }

  /**
   * Give it up before its end. No new file is left; one that was there is as it was, or empty if it was written
   * to already. A device keeps what was written.
   */
  abandon(): Remainder {
    this.#work.return();
    return this.#files.remainderOf(this.#plan.path);
  }

  *#run(): CreationPieces {
    const { path, dataFilePath, format, virtualSize } = this.#plan;
    createTrace("create")("%s: %s, %d bytes", path, format.name, virtualSize);
    const files = this.#files;
    let isComplete = false;
    try {
      const dataStorage = dataFilePath === undefined ? undefined : files.open(dataFilePath);
      const storage = files.open(path);
      if (format.name === "qed") requireFile(storage);
      requireLength(storage, lengthOf(this.#plan));
      if (dataStorage !== undefined) requireLength(dataStorage, virtualSize);
      files.beginWriting();
      yield* writeImage(this.#plan, { storage, dataStorage });
      files.close();
      isComplete = true;
    } finally {
      if (!isComplete) files.discard();
    }
  }
}

/** Bytes of the image file. */
function lengthOf({ format, virtualSize }: PlannedImage): number {
  switch (format.name) {
    case "raw":
      return virtualSize;
    case "qcow2":
      return imageLength(format.plan);
    case "qed":
      return format.plan.length;
  }
}

function writeImage(
  { format, virtualSize }: PlannedImage,
  files: { storage: WritableStorage; dataStorage: WritableStorage | undefined },
): CreationPieces {
  switch (format.name) {
    case "raw":
      return createRaw(files.storage, { virtualSize, preallocation: format.preallocation });
    case "qcow2":
      return writeQcow2(format.plan, files);
    case "qed":
      return writeQed(format.plan, files.storage);
  }
}

/** A file that is being written: whether it was there before decides what a failure leaves. */
interface OutputFile {
  readonly file: LocalFile;
  readonly isNew: boolean;
}

class OutputFiles {
  readonly #files: OutputFile[] = [];
  #writing = false;

  /** Open a file, or make one, and lock it. What it contains stays for now. */
  open(path: string): LocalFile {
    const isNew = !fs.existsSync(path);
    const file = createFile(path);
    this.#files.push({ file, isNew });
    lockForWriting(file);
    return file;
  }

  /** From now on the old contents are lost. */
  beginWriting(): void {
    this.#writing = true;
  }

  sync(): void {
    for (const { file } of this.#files) file.sync();
  }

  close(): void {
    for (const { file } of this.#files) file.close();
  }

  /** What `discard` leaves of a file. */
  remainderOf(path: string): Remainder {
    const output = this.#files.find(({ file }) => file.path === path);
    if (output === undefined) return fs.existsSync(path) ? "untouched" : "nothing";
    if (output.isNew) return "nothing";
    if (!this.#writing) return "untouched";
    return output.file.resizable ? "empty" : "overwritten";
  }

  /** Remove what is new; what was there before is left as it is, or empty if it was written to. */
  discard(): void {
    for (const { file, isNew } of this.#files) {
      try {
        if (isNew) fs.rmSync(fs.realpathSync(file.path));
        else if (this.#writing && file.resizable) file.setLength(0);
      } catch {
        // The error that led here is the one to report.
      }
      file.close();
    }
  }
}

function createFile(path: string): LocalFile {
  try {
    return LocalFile.create(path);
  } catch (cause) {
    const reason = cause instanceof StorageError ? CREATE_REASONS[cause.code] : undefined;
    if (!(cause instanceof StorageError) || reason === undefined) throw cause;
    throw new StorageError(cause.code, path, reason, { cause });
  }
}

/** What these errors mean where a file is made. */
const CREATE_REASONS: Readonly<Partial<Record<Errno, string>>> = {
  ENOENT: "there is no such directory",
  EISDIR: "is a directory",
};
