// The model of the fsx program: what its range of the device must contain, byte for byte.

/** The device contradicts the model. */
export class Contradiction extends Error {
  override readonly name = "Contradiction";
}

function hexAround(bytes: Buffer, index: number): string {
  return bytes.subarray(index, index + 16).toString("hex");
}

export class RangeModel {
  readonly start: number;
  readonly bytes: Buffer;

  /** @param start where in the device the bytes are */
  constructor(start: number, bytes: Buffer) {
    this.start = start;
    this.bytes = bytes;
  }

  /** A part of the model, not a copy. */
  part(offset: number, length: number): Buffer {
    const from = offset - this.start;
    return this.bytes.subarray(from, from + length);
  }

  /** Notes that bytes were written. */
  write(offset: number, source: Buffer): void {
    source.copy(this.bytes, offset - this.start);
  }

  /** @throws {Contradiction} what was read is not what must be there */
  expect(offset: number, actual: Buffer, how: string): void {
    const wanted = this.part(offset, actual.length);
    if (wanted.equals(actual)) {
      return;
    }
    const index = wanted.findIndex((byte, at) => byte !== actual[at]);
    const last = wanted.findLastIndex((byte, at) => byte !== actual[at]);
    throw new Contradiction(
      `${how} of ${actual.length} bytes at ${offset}: first difference at ${offset + index}, last at ` +
        `${offset + last}, wanted ${hexAround(wanted, index)}, read ${hexAround(actual, index)}`,
    );
  }

  /**
   * After an operation that failed: takes over what was read, in which each byte is as it was or as
   * the operation would have made it.
   *
   * @throws {Contradiction} a byte is neither
   */
  adopt(offset: number, attempted: Buffer, actual: Buffer, how: string): void {
    const old = this.part(offset, actual.length);
    const index = actual.findIndex((byte, at) => byte !== old[at] && byte !== attempted[at]);
    if (index >= 0) {
      throw new Contradiction(
        `after ${how} that failed, at ${offset + index}: read ${hexAround(actual, index)}, ` +
          `before it ${hexAround(old, index)}, after it ${hexAround(attempted, index)}`,
      );
    }
    this.write(offset, actual);
  }
}
