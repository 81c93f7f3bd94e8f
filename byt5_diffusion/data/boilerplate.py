"""Captions that say nothing of their picture, in many languages.

Programs write them: names of files, numbers of pictures, addresses, words that
stand where a caption was forgotten. `reason` knows them whatever the language
of the caption is said to be.
"""

import functools

import regex

# What a picture is called, and what stands in place of a caption.
_NOUNS = """
image|images|img|photo|photos|photograph|picture|pic|figure|fig|logo|icon|
thumbnail|banner|avatar|screenshot|slide|page|scan|untitled|gallery|placeholder
|imagen|imágenes|foto|fotos|fotografía|figura|página|sin título|miniatura
|image sans titre|photographie|figure|sans titre|vignette|capture d'écran
|bild|bilder|foto|abbildung|abb|ohne titel|vorschaubild|seite|symbolbild
|immagine|immagini|fotografia|senza titolo|miniatura|pagina
|imagem|imagens|sem título|fotografia|miniatura
|obraz|obrazek|zdjęcie|bez tytułu|strona|miniatura
|afbeelding|plaatje|zonder titel|pagina
|resim|görsel|fotoğraf|resmi|başlıksız|sayfa
|изображение|фото|фотография|картинка|рисунок|рис|без названия|страница|логотип
|зображення|світлина|фотографія|малюнок|без назви|сторінка
|снимка|изображение|картина|obrázek|fotografie|bez názvu|strana
|obrázok|fotografia|slika|fotografija|kép|fénykép|cím nélkül|oldal
|kuva|valokuva|nimetön|sivu|billede|bilde|bild|uten tittel|utan titel|side|sida
|imagine|fotografie|fără titlu|εικόνα|φωτογραφία|χωρίς τίτλο|σελίδα
|ảnh|hình ảnh|hình|không có tiêu đề|gambar|foto|tanpa judul|halaman
|画像|写真|図|無題|サムネイル|ページ|ロゴ|图片|照片|图像|图|圖片|圖像|圖|无标题|無標題|缩略图|头像
|이미지|사진|그림|제목 없음|썸네일|로고
|صورة|صور|بدون عنوان|شعار|عکس|تصویر|تصاویر|بدون عنوان|لوگو|تصویر|تصاویر
|תמונה|תמונות|צילום|ללא כותרת|לוגו|בילד
|चित्र|तस्वीर|फोटो|छवि|छायाचित्र|तस्बिर|শিরোনামহীন|ছবি|ফটো|படம்|புகைப்படம்
|చిత్రం|ఫోటో|ಚಿತ್ರ|ഫോട്ടോ|ചിത്രം|છબી|ફોટો|ਤਸਵੀਰ|ඡායාරූපය|පින්තූරය
|ภาพ|รูป|รูปภาพ|รูปถ่าย|ภาพถ่าย|ຮູບ|ຮູບພາບ|រូបភាព|រូបថត|ဓာတ်ပုံ|ပုံ
|სურათი|ფოტო|նկար|լուսանկար|ምስል|ፎቶ|picha|hoto|aworan|sawir|isithombe|umfanekiso
|attēls|foto|nuotrauka|paveikslėlis|pilt|foto|mynd|ljósmynd|íomhá|llun|argazkia
|imatge|imaxe|stampa|ritratt|şəkil|foto|rasm|surat|сурет|сүрөт|зураг|акс|слика
|larawan|litrato|hulagway|gambar|gambar|sary|nkata|mufananidzo|chithunzi
"""
# Captions that are all of this, apart from punctuation.
_WHOLE = """
no caption|no description|no image|no image available|image not available|
image not found|image not available yet|coming soon|default image|click here|
click to enlarge|click for larger image|enlarge image|view larger image|zoom|
read more|learn more|share this|loading|advertisement|advertisment|sponsored|
thumbnail for|image for|picture of|photo of|image of|photo by|featured image|
profile picture|profile photo|cover photo|header image|background image|
stock photo|product image|main image|blog image|post image|article image|
no photo|no photo available|open in gallery|save image|download image|
embedded image permalink|image may contain|related image|open image in viewer
|imagen no disponible|sin imagen|ver más|leer más|haga clic para ampliar
|image non disponible|pas d'image|en savoir plus|lire la suite
|cliquez pour agrandir|kein bild|kein bild verfügbar|bild vergrößern
|weiterlesen|mehr erfahren|werbung|immagine non disponibile|leggi tutto
|imagem não disponível|sem imagem|leia mais|saiba mais|brak zdjęcia
|czytaj więcej|geen afbeelding|lees meer|resim yok|devamını oku
|нет фото|нет изображения|фото отсутствует|изображение отсутствует
|читать далее|подробнее|увеличить|немає фото|немає зображення
|няма снимка|obrázek není k dispozici|více informací|kép nem elérhető
|ei kuvaa|ingen bild|intet billede|ingen bilde|fără imagine|citește mai mult
|không có ảnh|xem thêm|tidak ada gambar|baca selengkapnya|tiada gambar
|画像なし|画像はありません|続きを読む|もっと見る|クリックで拡大|暂无图片|无图|查看更多|點擊放大|点击放大
|이미지 없음|더 보기|لا توجد صورة|اقرأ المزيد|بدون تصویر|ادامه مطلب
|אין תמונה|קרא עוד|कोई चित्र नहीं|और पढ़ें|ไม่มีรูปภาพ|อ่านต่อ
"""
# At the beginning or the end: what programs put around captions.
_EDGES = (
  "embedded image permalink",
  "profile photo",
  "no automatic alt text available",
  "image may contain",
  "may be an image of",
  "click to enlarge picture",
  "click here to view",
)
_OF = "of|de|von|di|z|van|из|з|от|av|av|fra|sur|su|/|sul|의|中|/|dari|trong|của"

_PUNCTUATION = r"[\p{P}\p{S}\p{Z}\p{C}]"
_PATTERNS = {
  "file name": (
    r"\S+\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|ico|psd|pdf|mp4)"
    r"(\?\S*)?|.*[\w)]\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif)|"
    r"(img|dsc[nf]?|dscf|dcim|p|pict|photo|image|screen ?shot|wp|pxl|mvi|gopr|"
    r"sam|cimg|imag|capture|scan|untitled|whatsapp image|wa)"
    r"[-_ ]*\d{3,}[-_\d\p{L}() ]{0,24}"
  ),
  "address": r"(\S+\s)?\s*(https?://|www\.)\S+|\S+@\S+\.\w+|"
  r"[\w-]+(\.[\w-]+)*\.(com|org|net|de|ru|fr|jp|cn|uk|info|html?|php|aspx?)"
  r"(/\S*)?",
  "hash": r"[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|"
  # Letters and digits mixed as in no word.
  r"(?=\S*\d\S*\p{L}\S*\d)(?=\S*\p{L}\S*\d\S*\p{L})[\w+/=-]{16,}",
}


def _split(listing: str) -> frozenset[str]:
  return frozenset(
    _plain(item) for item in listing.replace("\n", "").split("|") if item
  )


def _plain(text: str) -> str:
  """Lower case, without punctuation around words."""
  return " ".join(regex.sub(_PUNCTUATION, " ", text.casefold()).split())


@functools.cache
def _compiled() -> tuple[regex.Pattern[str], dict[str, regex.Pattern[str]]]:
  nouns = "|".join(sorted(map(regex.escape, _split(_NOUNS)), reverse=True))
  number = r"[\p{Nd}]+"
  numbered = regex.compile(
    rf"(第\s*)?({nouns})?\s*{number}\s*(({_OF})?\s*{number})?\s*"
    rf"({nouns}|枚|張|张|번째)?|({number}\s*)?({nouns})"
  )
  return numbered, {
    reason: regex.compile(pattern, regex.IGNORECASE | regex.DOTALL)
    for reason, pattern in _PATTERNS.items()
  }


@functools.cache
def _whole() -> frozenset[str]:
  return _split(_WHOLE) | _split(_NOUNS)


def reason(text: str) -> str | None:
  """Why a caption says nothing of its picture; None: it may say something.

  Args:
    text: NFC, without white space around it.

  Returns:
    "file name", "address", "hash", "number of a picture", "boilerplate".
  """
  numbered, patterns = _compiled()
  # These are long tokens, or end in one: most captions need no more looking.
  for name, pattern in patterns.items():
    if pattern.fullmatch(text[:300]):
      return name
  plain = _plain(text)
  if plain in _whole():
    return "boilerplate"
  if len(plain) <= 40 and numbered.fullmatch(plain):
    return "number of a picture"
  if plain.startswith(_EDGES) or plain.endswith(_EDGES):
    return "boilerplate"
  return None
