"""Words of languages that CLDR says little about, and tables of writing.

The words are those of word_lists.py, in its order, without the notions whose
word is not sure. `_` stands for a space inside an entry. Codes are mC4's.
"""

# mC4's code -> words.
WORDS: dict[str, str] = {
  "ceb": """
    usa duha tulo upat lima unom pito walo siyam napulo pula puti itom asul
    lunhaw dalag tubig kalayo adlaw bulan langit yuta dagat bukid suba kahoy
    bulak iro iring langgam isda kabayo baka balay libro pultahan kamot mata
    kasingkasing tinapay gatas tsa bugas asin mansanas gabii tuig ngalan
    higala
  """,
  "co": """
    unu dui trè quattru cinque sei sette ottu nove dece rossu biancu neru
    turchinu verde giallu acqua focu sole luna celu terra mare monte fiume
    arburu fiore cane ghjattu acellu pesciu cavallu vacca casa libru porta
    manu ochju core pane latte tè risu sale mela ghjornu notte annu nome amicu
  """,
  "haw": """
    kahi lua kolu hā lima ono hiku walu iwa ʻumi ʻulaʻula keʻokeʻo ʻeleʻele
    uliuli ʻōmaʻomaʻo melemele wai ahi lā mahina lani honua kai mauna kahawai
    kumulāʻau pua ʻīlio pōpoki manu iʻa lio pipi hale puke puka maka puʻuwai
    palaoa waiū kī laiki paʻakai ʻāpala pō makahiki inoa hoaaloha
  """,
  "hi-Latn": """
    ek do teen chaar paanch chhah saat aath nau das laal safed kaala neela
    hara peela paani aag sooraj chaand aasmaan dharti samundar pahaad nadi ped
    phool kutta billi pakshi machhli ghoda gaay ghar kitaab darwaza haath
    aankh dil roti doodh chai chaawal namak seb din raat saal naam dost
  """,
  "hmn": """
    ib ob peb plaub tsib rau xya yim cuaj kaum liab dawb dub xiav ntsuab daj
    dej hluav_taws hnub hli ntuj av hiav_txwv roob tus_dej ntoo paj dev miv
    noog ntses nees nyuj tsev phau_ntawv qhov_rooj tes qhov_muag plawv mis
    mov ntsev hmo xyoo npe phooj_ywg
  """,
  "ht": """
    youn de twa kat senk sis sèt uit nèf dis wouj blan nwa ble vèt jòn dlo dife
    solèy lalin syèl tè lanmè mòn rivyè pyebwa flè chen chat zwazo pwason
    chwal bèf kay liv pòt men je kè pen lèt te diri sèl pòm jou lannwit ane
    non zanmi
  """,
  "ja-Latn": """
    ichi ni san yon go roku nana hachi kyū jū aka shiro kuro ao midori kiiro
    mizu hi taiyō tsuki sora chikyū umi yama kawa ki hana inu neko tori sakana
    uma ushi ie hon doa te me kokoro pan gyūnyū ocha kome shio ringo yoru
    toshi namae tomodachi Tōkyō Ōsaka Kyōto Nara Hokkaidō Okinawa getsuyōbi
    kayōbi suiyōbi mokuyōbi kin'yōbi doyōbi nichiyōbi
  """,
  "la": """
    unus duo tres quattuor quinque sex septem octo novem decem ruber albus
    niger caeruleus viridis flavus aqua ignis sol luna caelum terra mare mons
    flumen arbor flos canis feles avis piscis equus vacca domus liber ianua
    manus oculus cor panis lac thea oryza sal malum dies nox annus nomen
    amicus
  """,
  "mg": """
    iray roa telo efatra dimy enina fito valo sivy folo mena fotsy mainty
    manga maitso mavo rano afo masoandro volana lanitra tany ranomasina
    tendrombohitra renirano hazo voninkazo alika saka vorona trondro soavaly
    omby trano boky varavarana tanana maso fo mofo ronono dite vary sira paoma
    andro alina taona anarana namana
  """,
  "mi": """
    tahi rua toru whā rima ono whitu waru iwa tekau whero mā pango kikorangi
    kākāriki kōwhai wai ahi rā marama rangi whenua moana maunga awa rākau
    putiputi kurī ngeru manu ika hōiho kau whare pukapuka tatau ringa karu
    ngākau parāoa miraka tī raihi tote āporo pō tau ingoa hoa
  """,
  "ny": """
    modzi wiri tatu nayi sanu ofiira oyera akuda madzi moto dzuwa mwezi
    thambo dziko nyanja phiri mtsinje mtengo duwa galu mphaka mbalame nsomba
    kavalo ng'ombe nyumba buku chitseko dzanja diso mtima mkate mkaka tiyi
    mpunga mchere apulo tsiku usiku chaka dzina bwenzi
  """,
  "sm": """
    tasi lua tolu fa lima ono fitu valu iva sefulu mūmū paʻepaʻe uliuli
    lanumoana lanumeamata samasama vai afi lā masina lagi lalolagi sami mauga
    vaitafe laʻau fugalaʻau maile pusi manulele iʻa solofanua povi fale tusi
    faitotoʻa mata fatu falaoa susu tī araisa māsima apu aso pō tausaga igoa
    uō
  """,
  "sn": """
    motsi piri tatu ina shanu tanhatu nomwe sere pfumbamwe gumi tsvuku chena
    nhema bhuruu girini yero mvura moto zuva mwedzi denga nyika gungwa gomo
    rwizi muti ruva imbwa katsi shiri hove bhiza mombe imba bhuku musuo ruoko
    ziso moyo chingwa mukaka tii mupunga munyu usiku gore zita shamwari
  """,
  "st": """
    nngwe pedi tharo nne hlano tshelela supa robedi robong leshome kgubedu
    tshweu ntsho bolou tala tshehla metsi mollo letsatsi kgwedi lehodimo
    lefatshe lewatle thaba noka sefate palesa ntja katse nonyana tlhapi pere
    kgomo ntlo buka lemati letsoho leihlo pelo bohobe lebese tee raese letswai
    apole bosiu selemo lebitso motswalle
  """,
  "su": """
    hiji dua tilu opat lima genep tujuh dalapan salapan sapuluh beureum bodas
    hideung biru héjo konéng cai seuneu panonpoé bulan langit bumi laut gunung
    walungan tangkal kembang anjing ucing manuk lauk kuda sapi imah buku panto
    leungeun panon haté roti susu entéh sangu uyah apel poé peuting taun
    ngaran sobat
  """,
  "zh-Latn": """
    yī èr sān sì wǔ liù qī bā jiǔ shí hóng bái hēi lán lǜ huáng shuǐ huǒ
    tàiyáng yuèliang tiānkōng dìqiú dàhǎi shān hé shù huā gǒu māo niǎo yú mǎ
    niú fángzi shū mén shǒu yǎnjing xīn miànbāo niúnǎi chá mǐfàn yán píngguǒ
    báitiān yèwǎn nián míngzi péngyou Běijīng Shànghǎi Guǎngzhōu Chéngdū
    xīngqīyī xīngqī'èr xīngqīsān xīngqīsì xīngqīwǔ xīngqīliù xīngqītiān
  """,
}

# mC4's code -> (script, share) of its writings; others are in Latin letters.
SCRIPTS: dict[str, tuple[tuple[str, float], ...]] = {
  code: ((script, 1.0),)
  for script, codes in {
    "Arab": "ar fa ps sd ur",
    "Armn": "hy",
    "Beng": "bn",
    "Cyrl": "be bg kk ky mk mn ru tg uk",
    "Deva": "hi mr ne",
    "Ethi": "am",
    "Geor": "ka",
    "Grek": "el",
    "Gujr": "gu",
    "Guru": "pa",
    "Hebr": "iw yi",
    "Jpan": "ja",
    "Khmr": "km",
    "Knda": "kn",
    "Kore": "ko",
    "Laoo": "lo",
    "Mlym": "ml",
    "Mymr": "my",
    "Sinh": "si",
    "Taml": "ta",
    "Telu": "te",
    "Thai": "th",
  }.items()
  for code in codes.split()
} | {
  "sr": (("Cyrl", 0.8), ("Latn", 0.2)),
  "uz": (("Latn", 0.6), ("Cyrl", 0.4)),
  "zh": (("Hans", 0.8), ("Hant", 0.2)),
}

# Comma, full stop, question mark; ("," "." "?") elsewhere. "" = none is used.
_ARABIC = ("،", ".", "؟")
_HAN = ("、", "。", "？")
_DANDA = (",", "।", "?")
PUNCTUATION: dict[str, tuple[str, str, str]] = {
  "am": ("፣", "።", "?"),
  "ar": _ARABIC,
  "bn": _DANDA,
  "el": (",", ".", ";"),
  "fa": _ARABIC,
  "hi": _DANDA,
  "hy": (",", "։", ""),
  "ja": _HAN,
  "km": (",", "។", "?"),
  "lo": (",", "", "?"),
  "my": ("၊", "။", ""),
  "ne": _DANDA,
  "pa": _DANDA,
  "ps": _ARABIC,
  "sd": ("،", ".", "؟"),
  "th": (" ", "", ""),
  "ur": ("،", "۔", "؟"),
  "zh": _HAN,
}
# Before a question and behind it, where it is not one mark behind.
QUESTIONS: dict[str, tuple[str, str]] = {"es": ("¿", "?"), "gl": ("¿", "?")}

# The digit nought where another than ours is in use beside ours.
ZEROS: dict[str, str] = {
  "ar": "٠", "bn": "০", "fa": "۰", "gu": "૦", "hi": "०", "km": "០",
  "kn": "೦", "lo": "໐", "mr": "०", "my": "၀", "ne": "०", "pa": "੦",
  "ps": "۰", "sd": "٠", "te": "౦", "th": "๐", "ur": "۰",
}  # fmt: skip
