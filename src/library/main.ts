/** The package as programs import it: all that it promises. */

export { type Errno, TsimgfsError } from "../errors.ts";
export type {
  BackingPolicy,
  FileStats,
  Image,
  ImageBlockStatus,
  ImageFormat,
  ImageStats,
  OpenImageOptions,
} from "./image.ts";
export { openImage } from "./open-image.ts";
