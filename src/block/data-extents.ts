/**
 * The bytes of data extents as the disk has them: encrypted images keep them encrypted, in sectors of 512
 * bytes. All that reads or writes data of an image goes through here.
 */

import assert from "node:assert";
import type { FormatImage } from "../formats/driver.ts";
import type { DataCipher } from "../formats/encryption/image-key.ts";
import { CRYPT_SECTOR_SIZE } from "../formats/encryption/sector-cipher.ts";
import type { Storage, WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { ZEROS, ZEROS_SIZE } from "../syscalls/zeros.ts";

/** What does not start and end with a sector is read in pieces of this many bytes. */
const PIECE_SIZE = 64 * 1024;
/** Bytes that are encrypted and then written in one go, at least: as much as a request has. */
const WRITE_SIZE_MIN = 1024 * 1024;
/** The cipher works on words of 32 bits. */
const WORD_SIZE = 4;
/** Zeros from this many bytes on are no bytes that are written, but a hole. */
const HOLE_MIN = 64 * 1024;

/** Where bytes are: host offset in the data storage, and guest offset; bytes, alike modulo 512. */
function firstSector(cipher: DataCipher, hostOffset: number, guestOffset: number): number {
  const offset = cipher.origin === "host" ? hostOffset : guestOffset;
  return Math.floor(offset / CRYPT_SECTOR_SIZE);
}

function isWholeSectors(offset: number, length: number): boolean {
  return offset % CRYPT_SECTOR_SIZE === 0 && length % CRYPT_SECTOR_SIZE === 0;
}

/** Data of an image, to read. */
export class DataReader {
  readonly #storage: Storage;
  readonly #cipher: DataCipher | undefined;
  readonly #isLocked: boolean;
  #piece: NativeBuffer | undefined;

  constructor(image: FormatImage) {
    this.#storage = image.dataStorage;
    this.#cipher = image.cipher;
    this.#isLocked = image.encrypted && image.cipher === undefined;
  }

  /**
   * Read `length` bytes of data extents that are one after the other on the host.
   *
   * @throws {StorageError} the target may be written in part
   */
  read(
    target: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
    guestOffset: number,
  ): void {
    const cipher = this.#cipher;
    if (cipher === undefined) {
      assert(!this.#isLocked, "data of an encrypted image is read without its key");
      this.#storage.readAt(target, start, length, hostOffset);
      return;
    }
    const isAligned = (target.bytes.byteOffset | start) % WORD_SIZE === 0;
    if (isAligned && isWholeSectors(hostOffset, length)) {
      this.#storage.readAt(target, start, length, hostOffset);
      const sector = firstSector(cipher, hostOffset, guestOffset);
      cipher.sectors.decrypt(target, start, length, sector);
    } else this.#readParts(cipher, target, start, length, hostOffset, guestOffset);
  }

  /** Read whole sectors around what is wanted, and copy that. */
  #readParts(
    cipher: DataCipher,
    target: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
    guestOffset: number,
  ): void {
    this.#piece ??= NativeBuffer.allocate(PIECE_SIZE);
    const piece = this.#piece;
    let done = 0;
    while (done < length) {
      const skip = (hostOffset + done) % CRYPT_SECTOR_SIZE;
      const count = Math.min(length - done, PIECE_SIZE - skip);
      const whole = Math.ceil((skip + count) / CRYPT_SECTOR_SIZE) * CRYPT_SECTOR_SIZE;
      const offset = hostOffset + done - skip;
      this.#storage.readAt(piece, 0, whole, offset);
      const sector = firstSector(cipher, offset, guestOffset + done - skip);
      cipher.sectors.decrypt(piece, 0, whole, sector);
      target.bytes.set(piece.bytes.subarray(skip, skip + count), start + done);
      done += count;
    }
  }
}

/** Data of an image, to write; what others do meanwhile is the caller's matter. */
export class DataWriter {
  readonly isEncrypted: boolean;
  readonly #storage: WritableStorage;
  readonly #cipher: DataCipher | undefined;
  readonly #reader: DataReader;
  readonly #bounceSize: number;
  #bounce: NativeBuffer | undefined;

  /** @param storage the data storage of the image */
  constructor(image: FormatImage, storage: WritableStorage) {
    this.isEncrypted = image.encrypted;
    this.#storage = storage;
    this.#cipher = image.cipher;
    this.#reader = new DataReader(image);
    this.#bounceSize = Math.max(WRITE_SIZE_MIN, image.clusterSize);
  }

  /**
   * Whether writing a range changes bytes around it, too: parts of encrypted sectors are read and written
   * again as a whole. Nobody else may write to them then.
   */
  touchesMore(guestOffset: number, length: number): boolean {
    return this.isEncrypted && !isWholeSectors(guestOffset, length);
  }

  /**
   * Write `length` bytes; in one go if they are no more than a cluster, or a MiB.
   *
   * @throws {StorageError} a part may have been written
   */
  write(
    source: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
    guestOffset: number,
  ): void {
    const cipher = this.#cipher;
    if (cipher === undefined) {
      assert(!this.isEncrypted, "data of an encrypted image is written without its key");
      this.#storage.writeAt(source, start, length, hostOffset);
      return;
    }
    this.#bounce ??= NativeBuffer.allocate(this.#bounceSize);
    const bounce = this.#bounce;
    let done = 0;
    while (done < length) {
      const skip = (hostOffset + done) % CRYPT_SECTOR_SIZE;
      const count = Math.min(length - done, bounce.length - skip);
      const end = skip + count;
      const whole = Math.ceil(end / CRYPT_SECTOR_SIZE) * CRYPT_SECTOR_SIZE;
      const host = hostOffset + done - skip;
      const guest = guestOffset + done - skip;
      if (skip > 0) this.#reader.read(bounce, 0, CRYPT_SECTOR_SIZE, host, guest);
      if (end < whole && (skip === 0 || whole > CRYPT_SECTOR_SIZE)) {
        const last = whole - CRYPT_SECTOR_SIZE;
        this.#reader.read(bounce, last, CRYPT_SECTOR_SIZE, host + last, guest + last);
      }
      bounce.bytes.set(source.bytes.subarray(start + done, start + done + count), skip);
      cipher.sectors.encrypt(bounce, 0, whole, firstSector(cipher, host, guest));
      this.#storage.writeAt(bounce, 0, whole, host);
      done += count;
    }
  }

  /**
   * Write zeros.
   *
   * @param space what becomes of the host's space, where zeros can be holes
   * @throws {StorageError} a part may have been written
   */
  writeZeros(
    length: number,
    hostOffset: number,
    guestOffset: number,
    space: "release" | "keep",
  ): void {
    if (!this.isEncrypted && length >= HOLE_MIN) {
      this.#storage.zeroAt(hostOffset, length, space);
    } else this.fillZeros(length, hostOffset, guestOffset);
  }

  /** Write zeros as bytes. */
  fillZeros(length: number, hostOffset: number, guestOffset: number): void {
    for (let done = 0; done < length; done += ZEROS_SIZE) {
      const count = Math.min(length - done, ZEROS_SIZE);
      this.write(ZEROS, 0, count, hostOffset + done, guestOffset + done);
    }
  }

  /** Whether a place reads as zeros, which the host has there if it is new: they are none when decrypted. */
  isZeroPlace(isFresh: boolean, hostOffset: number, length: number): boolean {
    return !this.isEncrypted && (isFresh || this.#storage.isHole(hostOffset, length));
  }

  /** Let the host allocate space for a range, whose contents stay. */
  preallocate(hostOffset: number, length: number): void {
    this.#storage.preallocate(hostOffset, length);
  }
}
