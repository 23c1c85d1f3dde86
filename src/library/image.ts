/// <reference lib="esnext.disposable" preserve="true" />
/**
 * What programs use of the package: an image, and what it says of itself. This file is published as it is, and
 * names nothing else of ours.
 */

export type ImageFormat = "raw" | "qcow2" | "qed";

/**
 * Which files an image may make a program open. any: every local path. same-directory: those beside the image
 * that names them. none: no others.
 */
export type BackingPolicy = "any" | "same-directory" | "none";

export interface OpenImageOptions {
  /**
   * The format, without looking. Default: by the magic number; a file without a known one is raw only if it is
   * named .raw or .img.
   */
  readonly format?: ImageFormat | undefined;
  /** Default: true. Backing files are only read in any case. */
  readonly readOnly?: boolean | undefined;
  /** Default: any for root and for one's own images, else same-directory. */
  readonly backingPolicy?: BackingPolicy | undefined;
  /** Passphrases of encrypted images: of each, one must be among them. They may be wiped afterwards. */
  readonly secrets?: readonly Uint8Array[] | undefined;
  /** Passphrases of encrypted backing files, one for each from the first one on. Default: `secrets` are for all. */
  readonly backingSecrets?: readonly Uint8Array[] | undefined;
}

/** What a run of the disk is, in the words of qemu-img map. */
export interface ImageBlockStatus {
  /** Bytes, > 0. */
  readonly length: number;
  /** Which image decides: 0 is the image itself, 1 its backing file, and so on. */
  readonly depth: number;
  /** Some image says what is here, be it zeros. */
  readonly present: boolean;
  /** It reads as zeros. */
  readonly zero: boolean;
  /** An image has data for it, which may be zeros. */
  readonly data: boolean;
  readonly compressed: boolean;
  /** Where the bytes are in the file of that image; undefined: at no one place, or nowhere. */
  readonly hostOffset: number | undefined;
}

/**
 * What the bytes of a file are for; all but usedOverrun add up to fileSize. used: something of the image is
 * there. zero: a hole of the host. discarded: nothing is stored or promised there; 0 for files.
 */
export interface FileStats {
  readonly fileSize: number;
  readonly usedData: number;
  readonly usedZero: number;
  readonly usedDiscarded: number;
  /** Used, but the file ends before. */
  readonly usedOverrun: number;
  readonly unusedData: number;
  readonly unusedZero: number;
  readonly unusedDiscarded: number;
}

/** What an image consists of: the numbers of `tsimgfs stats`, all in bytes. */
export interface ImageStats {
  readonly file: FileStats;
  /** Of the external data file; undefined: there is none. */
  readonly dataFile: FileStats | undefined;
  /** The disk as this image has it; they add up to its virtual size. */
  readonly guest: {
    readonly data: number;
    readonly zero: number;
    /** The image says nothing: a backing file shows through, or zeros. */
    readonly unallocated: number;
    readonly compressed: number;
  };
  /** How much of the disk comes from which image; the image itself is first. */
  readonly layers: readonly {
    readonly depth: number;
    readonly filename: string;
    readonly bytes: number;
  }[];
  /** What no image says anything about: it reads as zeros. */
  readonly nowhere: number;
}

/**
 * A disk image that is open, with all the files below it. Everything is done when a call returns. Nobody else
 * may write to the image meanwhile, QEMU included; if it is open for writing, nobody else may use it.
 *
 * Every method throws a TsimgfsError: EBADF after close; EINVAL for a range that is not on the disk; EROFS
 * where something would be written to an image that is open for reading; EIO for tables that cannot be right;
 * else the code of the system call that failed. What is no Uint8Array, or no number, is a TypeError.
 */
export interface Image {
  readonly path: string;
  readonly format: ImageFormat;
  /** Bytes. */
  readonly virtualSize: number;
  /** Bytes, a power of two; of a raw image, a sector. */
  readonly clusterSize: number;
  readonly readOnly: boolean;
  /** What one should know about the files, a line each: `FILE: warning: …`. */
  readonly warnings: readonly string[];

  /**
   * Read bytes of the disk, as many as `target` has; after an error it may be filled in part.
   *
   * @param offset bytes; offset + target.length <= virtualSize
   * @returns `target`
   */
  read<T extends Uint8Array>(target: T, offset: number): T;

  /**
   * Write all bytes of `source`. When it returns they are in the file, tables included: killing the program
   * loses nothing. `flush` makes them durable. After an error a part may have been written.
   *
   * @param offset bytes; offset + source.length <= virtualSize
   */
  write(source: Uint8Array, offset: number): void;

  /**
   * Make a range of any alignment read as zeros, and give its space back to the host where that can be done.
   *
   * @param offset bytes; offset + length <= virtualSize
   * @param length bytes
   */
  writeZeroes(offset: number, length: number): void;

  /**
   * What the disk is at an offset, and how far that holds; runs that follow each other may be alike.
   *
   * @param offset bytes, 0 <= offset < virtualSize
   * @param maxLength bytes, > 0: the run is no longer. Default: to the end of the disk
   */
  blockStatus(offset: number, maxLength?: number): ImageBlockStatus;

  /** Look at all tables: about a second of processor time for 1 TiB. */
  stats(): ImageStats;

  /** Make durable what was written before. */
  flush(): void;

  /**
   * Make durable what was written, give back what was reserved for more, and close the files, also after an
   * error. A second time nothing happens. An image that a program leaves open when it ends is as after a
   * crash: nothing that was written is lost, and the next one who opens it for writing clears up.
   */
  close(): void;

  /** As `close`: for `using`. */
  [Symbol.dispose](): void;
}
