/** The kinds of images by name: those that are read (images.ts), those that are written (write-images.ts). */

export const READ_IMAGE_NAMES = ["allocated", "overlay", "zlib", "raw", "slow"] as const;
export type ReadImageName = (typeof READ_IMAGE_NAMES)[number];

export const WRITE_IMAGE_NAMES = ["allocated", "empty", "overlay", "raw"] as const;
export type WriteImageName = (typeof WRITE_IMAGE_NAMES)[number];

export const IMAGE_NAMES = [...READ_IMAGE_NAMES, "empty"] as const;
export type ImageName = ReadImageName | WriteImageName;
