/** Letting the host copy bytes from file to file, by copy_file_range(2). */

import { constants } from "node:os";
import { TWO_TO_32 } from "../binary/words.ts";
import { copyFileRange, errno } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";

const { EINTR, EINVAL, ENOSYS, EOPNOTSUPP, EXDEV } = constants.errno;
/** What it says where it cannot copy between two files. */
const CANNOT_COPY: readonly number[] = [EINVAL, ENOSYS, EOPNOTSUPP, EXDEV];

/** Bytes of an off64_t. */
const OFF_SIZE = 8;

export class FileRangeCopier {
  readonly #offsets = NativeBuffer.allocate(2 * OFF_SIZE);

  /**
   * @param onFailure throws, of the byte of the target at which errno is set
   * @returns bytes from the start on that are copied; less than `length` where the host cannot do it
   */
  copy(
    sourceFd: number,
    sourceOffset: number,
    fd: number,
    offset: number,
    length: number,
    onFailure: (offset: number) => never,
  ): number {
    const { view, address } = this.#offsets;
    let done = 0;
    while (done < length) {
      setOffset(view, 0, sourceOffset + done);
      setOffset(view, OFF_SIZE, offset + done);
      const count = copyFileRange(sourceFd, address, fd, address + OFF_SIZE, length - done, 0);
      if (count > 0) done += count;
      else if (count === 0 || CANNOT_COPY.includes(errno())) return done;
      else if (errno() !== EINTR) onFailure(offset + done);
    }
    return done;
  }
}

/** Put an off64_t where the kernel reads it. */
function setOffset(view: DataView, at: number, offset: number): void {
  view.setUint32(at, offset % TWO_TO_32, true);
  view.setUint32(at + 4, Math.floor(offset / TWO_TO_32), true);
}
