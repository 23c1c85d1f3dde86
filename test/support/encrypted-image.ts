/** Encrypted images, made by qemu-img. */

import { attempt, until } from "./run.ts";

/**
 * Creates an encrypted qcow2 image.
 *
 * @param options creation options; encrypt.key-secret is "key"
 */
export async function createEncryptedImage(
  path: string,
  options: readonly string[],
  size: string,
): Promise<void> {
  const secret = ["--object", "secret,id=key,data=0123456789"];
  const args = ["create", "-q", "-f", "qcow2", ...secret, "-o"];
  // LUKS measures processor time to choose its costs, and gives up where the clock is too coarse for it.
  await until("the image is made", async () => {
    const { status } = await attempt("qemu-img", [...args, options.join(","), path, size]);
    return status === 0;
  });
}
